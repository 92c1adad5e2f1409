"""What is told of a job's end."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.owed import CALLBACK, owed, owed_for_result, owed_for_status
from operators.produce import produce
from operators.runtime import Runtime
from schemas.callbacks import CallbackDeferred
from schemas.event import Event
from schemas.jobs import JobState, StatusChanged
from schemas.results import Citation, ResultCompleted, Timings, TokenCount
from schemas.topics import EVENT_MAX_BYTES
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
URL = "https://hooks.example.org/T0?token=s3cret"
ENDED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def result(job_id: str = "j", text: str = "Six.", url: str | None = URL, ended: datetime = ENDED) -> ResultCompleted:
    return ResultCompleted(
        job_id=job_id,
        tenant="acme",
        kind="answer",
        text=text,
        finish_reason="stop",
        citations=(Citation(number=1, document_id="d", chunk_id="c", text="six rpm", score=0.5),),
        usage=TokenCount(prompt_tokens=1, completion_tokens=1),
        callback_url=url,
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=0),
        completed_at=ended,
    )


def status(state: JobState, url: str | None = URL, end_id: str | None = "end-1") -> StatusChanged:
    return StatusChanged(
        job_id="j",
        tenant="acme",
        state=state,
        step="answer.infer",
        detail="the model refused it",
        retryable=True,
        callback_url=url,
        end_id=end_id,
    )


def run(runtime_on: MakeRuntime, *events: Event | Record) -> MemoryTopics:
    records = [each if isinstance(each, Record) else record(each, offset=n) for n, each in enumerate(events)]
    topics = MemoryTopics(records)
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    completed = consume("completed", flow, ResultCompleted, runtime, holding=CALLBACK)
    ended = consume("ended", flow, StatusChanged, runtime, holding=CALLBACK)
    callbacks = owed("owed", completed.oks, ended.oks)
    produce("announced", callbacks.oks, CallbackDeferred, runtime)
    dead_letter("dlq", completed.errs, ended.errs, callbacks.errs, runtime=runtime)
    run_main(flow)
    return topics


def test_only_ends_that_somebody_wants_to_know_are_told(runtime_on: MakeRuntime) -> None:
    topics = run(
        runtime_on,
        result("silent", url=None),
        result("mentions", text='say "callback_url": or not', url=None),
        result("told"),
        *(status(state) for state in JobState),
        *(status(state, url=None) for state in JobState),
    )
    told = [CallbackDeferred.model_validate(each) for each in topics.on("callbacks.deferred")]
    endings = {"job.completed", "job.dead_lettered", "job.cancelled"}  # a completed status is told by its result
    assert {each.ending for each in told} == endings
    assert len(told) == 3
    assert topics.dead_letters() == []
    assert topics.statuses() == []


def test_an_end_that_does_not_say_when_it_was_is_the_same_whenever_it_is_read(runtime_on: MakeRuntime) -> None:
    silent = result().model_dump_json(exclude={"completed_at"}).encode()
    dateless = replace(record(result()), value=silent)
    first, again = (run(runtime_on, dateless).on("callbacks.deferred")[0] for _ in range(2))
    assert first == again
    assert datetime.fromisoformat(str(first["ended_at"])) == dateless.timestamp


def test_a_result_is_told_whole_but_for_the_url() -> None:
    callback = owed_for_result(result())
    assert callback.data["text"] == "Six."
    assert callback.data["citations"] == [
        {"number": 1, "document_id": "d", "chunk_id": "c", "text": "six rpm", "score": 0.5}
    ]
    assert "s3cret" not in json.dumps(callback.data)
    assert (callback.url, callback.attempts, callback.ended_at) == (URL, 0, ENDED)


def test_an_end_without_a_result_says_what_happened() -> None:
    assert owed_for_status(status(JobState.DEAD_LETTERED)).data == {
        "job_id": "j",
        "state": "dead_lettered",
        "step": "answer.infer",
        "detail": "the model refused it",
        "retryable": True,
    }


def test_a_result_that_is_too_large_for_another_event_is_told_without_its_text() -> None:
    callback = owed_for_result(result(text="x" * (EVENT_MAX_BYTES - 1000)))
    assert "results.completed" in str(callback.data["left_out"])
    assert callback.data["job_id"] == "j"
    assert len(callback.encode()) < 2000


def test_a_replay_of_an_end_has_its_id_and_every_other_end_another() -> None:
    later = datetime(2026, 1, 3, tzinfo=UTC)
    ends = [
        owed_for_result(result()),
        owed_for_result(result(ended=later)),
        owed_for_result(result("k")),
        owed_for_status(status(JobState.DEAD_LETTERED)),
        owed_for_status(status(JobState.DEAD_LETTERED, end_id="end-2")),
        owed_for_status(status(JobState.CANCELLED)),
        owed_for_status(status(JobState.CANCELLED, end_id=None)),
    ]
    assert len({each.callback_id for each in ends}) == len(ends)
    assert owed_for_result(result()).callback_id == ends[0].callback_id
    replayed = status(JobState.DEAD_LETTERED)
    assert owed_for_status(replayed.model_copy(update={"occurred_at": later})).callback_id == ends[3].callback_id
