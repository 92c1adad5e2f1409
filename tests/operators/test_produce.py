"""Events to their topics, and what becomes of one that its topic would refuse."""

from collections.abc import Callable
from dataclasses import replace

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from operators.decode import consume
from operators.envelope import Envelope
from operators.produce import produce
from operators.runtime import Runtime
from schemas.event import utc_now
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from schemas.results import TokenCount
from schemas.tools import ToolRequested
from schemas.topics import EVENT_MAX_BYTES
from schemas.trace import root_of
from schemas.usage import TokensUsed
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]


def asked(envelope: Envelope[RequestSubmitted]) -> Envelope[ToolRequested]:
    """What the model wants: as many arguments as the request allows tokens."""
    request = envelope.body
    call = ToolRequested(
        job_id=request.job_id,
        call_id="c",
        tool="search",
        arguments="x" * request.max_tokens * 100,
        depth=1,
        model="m",
        usage=TokenCount(prompt_tokens=1, completion_tokens=1),
        request=request,
        answer_until=utc_now(),
    )
    return envelope.admitted("paid").carrying(call)


def used(envelope: Envelope[ToolRequested]) -> list[TokensUsed]:
    job_id = envelope.job.job_id
    return [TokensUsed(job_id=job_id, admission_id="paid", root_job_id=job_id, prompt_tokens=7)]


def run(runtime_on: MakeRuntime, *records: Record) -> MemoryTopics:
    topics = MemoryTopics(records)
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    requests = consume("asked", flow, RequestSubmitted, runtime)
    produce("tools", op.map_value("ask", requests.oks, asked), ToolRequested, runtime, before=used)
    op.inspect("errs", requests.errs)
    run_main(flow)
    return topics


def request(job_id: str, max_tokens: int) -> RequestSubmitted:
    return RequestSubmitted(job_id=job_id, prompt="?", max_tokens=max_tokens)


def test_an_event_larger_than_its_topic_takes_ends_its_job_and_not_the_flow(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, record(request("large", 20_000)), record(request("small", 1), offset=1))
    assert [each["job_id"] for each in topics.on("tools.requested")] == ["small"]
    assert max(len(each.value) for each in topics.written) <= EVENT_MAX_BYTES
    (letter,) = topics.dead_letters()
    assert (letter.job_id, letter.topic, letter.step) == ("large", "requests.submitted", "test.tools")
    assert (letter.error_class, letter.retryable) == ("poison", False)
    assert "its ToolRequested would have 2,000," in letter.message
    assert f"tools.requested takes {EVENT_MAX_BYTES:,}" in letter.message
    assert [(status.job_id, status.state) for status in topics.statuses()] == [("large", JobState.DEAD_LETTERED)]


def test_a_call_whose_event_is_too_large_is_still_charged_once(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, record(request("large", 20_000)))
    assert [each["prompt_tokens"] for each in topics.on("usage.tokens")] == [7]


def test_a_trace_is_passed_on_and_one_that_is_none_is_that_of_the_job(runtime_on: MakeRuntime) -> None:
    def passed_on(traceparent: bytes) -> bytes:
        sent = replace(record(request("j", 1)), headers=(("traceparent", traceparent),))
        (call,) = [each for each in run(runtime_on, sent).written if each.topic == "tools.requested"]
        return dict(call.headers)["traceparent"]

    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    assert passed_on(trace) == trace
    assert passed_on(b"x" * 1_000_000) == root_of("j").traceparent.encode()


def test_the_last_status_of_a_dead_letter_says_who_wants_to_know_and_names_the_end(runtime_on: MakeRuntime) -> None:
    """A replay of the message ends the job once more in the same way; a redrive, or another submission, does not."""
    asked = request("large", 20_000).model_copy(update={"callback_url": "https://a.org/hook?token=s3cret"})
    topics = run(runtime_on, record(asked), record(asked, offset=7), record(asked))
    first, second, replay = topics.statuses()
    assert {first.callback_url, second.callback_url, replay.callback_url} == {"https://a.org/hook?token=s3cret"}
    assert first.end_id == replay.end_id != second.end_id
    assert all("s3cret" not in letter.model_dump_json(exclude={"message_value"}) for letter in topics.dead_letters())


def test_nobody_is_named_where_nobody_wants_to_know(runtime_on: MakeRuntime) -> None:
    (status,) = run(runtime_on, record(request("large", 20_000))).statuses()
    assert (status.callback_url, status.end_id) == (None, None)
