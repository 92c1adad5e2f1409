"""What a job carries through a flow."""

from dataclasses import fields, replace
from datetime import UTC, datetime

from pydantic import TypeAdapter

from operators.envelope import Envelope, Job, job_of
from schemas.event import utc_now
from schemas.requests import RequestSubmitted
from schemas.results import TokenCount
from schemas.tools import ToolRequested
from tests.memory_topics import record

URL = "https://hooks.example.org/"
REQUEST = RequestSubmitted(job_id="j", prompt="Why?", callback_url=URL)


def test_a_request_and_each_later_turn_of_it_know_who_wants_to_be_told() -> None:
    turn = ToolRequested(
        job_id="j",
        call_id="c",
        tool="search",
        arguments="{}",
        depth=1,
        model="m",
        usage=TokenCount(prompt_tokens=1, completion_tokens=1),
        said="",
        request=REQUEST,
        answer_until=utc_now(),
    )
    assert job_of(REQUEST).callback_url == job_of(turn).callback_url == URL


def test_an_admitted_job_is_the_same_job() -> None:
    full = Job("j", "acme", "d", datetime(2026, 1, 1, tzinfo=UTC), 3, "root", None, None, URL)
    envelope = Envelope(full, REQUEST, record(REQUEST), utc_now())
    assert all(
        getattr(full, field.name) is not None for field in fields(Job) if field.name not in {"admission_id", "billed"}
    )
    assert envelope.admitted("a") == replace(envelope, job=replace(full, admission_id="a"))


def test_a_snapshot_of_a_release_that_knew_no_callbacks_is_read() -> None:
    codec: TypeAdapter[Envelope[RequestSubmitted]] = TypeAdapter(Envelope[RequestSubmitted])
    plain = codec.dump_python(Envelope(job_of(REQUEST), REQUEST, record(REQUEST), utc_now()))
    del plain["job"]["callback_url"]
    assert codec.validate_python(plain).job.callback_url is None
