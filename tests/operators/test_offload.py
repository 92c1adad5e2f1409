"""Each guarantee of offload's docstring, on real dataflows."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Thread
from time import monotonic

import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.inputs import FixedPartitionedSource, Source, StatefulSourcePartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSource, cluster_main, run_main
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.envelope import Envelope
from operators.offload import OVERSHOOT, OffloadPolicy, backoff_s, offload
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import Fatal, Poison, Retryable
from schemas.event import Event, utc_now
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from tests.memory_topics import Entry, MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
QUICK = OffloadPolicy(capacity=8, backlog=8, timeout_s=5.0, attempts=3, backoff_base_s=0.01, backoff_cap_s=0.05)


def uploads(count: int, *, key: str | None = None) -> list[Entry]:
    return [
        record(
            DocumentUploaded.model_validate({"document_id": key or f"d{n}", "job_id": f"j{n}", "text": f"text {n}"}),
            offset=n,
        )
        for n in range(count)
    ]


def done(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
    body = envelope.body
    return DocumentIndexed(job_id=body.job_id, document_id=body.document_id, chunks=1, model="m")


def flow_of(
    runtime: Runtime,
    work: Callable[[Envelope[DocumentUploaded]], Awaitable[DocumentIndexed]],
    policy: OffloadPolicy = QUICK,
) -> Dataflow:
    flow = Dataflow("test")
    uploaded = consume("uploaded", flow, DocumentUploaded, runtime)
    worked = offload("work", uploaded.oks, work, body=DocumentUploaded, policy=policy, runtime=runtime)
    produce("indexed", worked.oks, DocumentIndexed, runtime)
    dead_letter("dlq", uploaded.errs, worked.errs, runtime=runtime)
    return flow


def indexed(topics: MemoryTopics) -> list[str]:
    return [str(payload["job_id"]) for payload in topics.on("documents.indexed")]


@pytest.fixture
def recovery(tmp_path: Path) -> RecoveryConfig:
    init_db_dir(tmp_path, 2)
    return RecoveryConfig(str(tmp_path))


def test_every_message_leaves_once_as_a_result(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(200))

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        await asyncio.sleep(0)
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    assert Counter(indexed(topics)) == Counter({f"j{n}": 1 for n in range(200)})


def test_silent_work_says_nothing_about_the_jobs(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(3))

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        if not failed:
            failed.append(envelope.body.job_id)
            raise Retryable("once more")
        return done(envelope)

    failed: list[str] = []
    run_main(flow_of(runtime_on(topics), work, replace(QUICK, silent=True)))
    assert len(indexed(topics)) == 3
    assert {status.state for status in topics.statuses()} == {JobState.COMPLETED}  # by `produce`


def test_never_more_in_flight_than_the_capacity(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(100), batch_size=100)
    running = 0
    most = 0

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    assert most == QUICK.capacity
    assert len(indexed(topics)) == 100


def test_even_a_source_that_knows_no_pressure_stalls_at_a_bound(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(OVERSHOOT + 100), batch_size=1)
    started: list[str] = []
    release = asyncio.Event()
    taken_when_full: list[int] = []

    def look_and_release() -> None:
        taken_when_full.append(len(topics.statuses()))
        release.set()

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        started.append(envelope.job.job_id)
        if len(started) == 1:
            asyncio.get_running_loop().call_later(2.0, look_and_release)
        await release.wait()
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    assert 0 < taken_when_full[0] <= QUICK.capacity + QUICK.backlog + OVERSHOOT
    assert len(indexed(topics)) == OVERSHOOT + 100


def test_a_retryable_failure_is_tried_again_and_seen_as_retrying(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(1))
    calls = 0

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Retryable("503 from the model")
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    assert calls == 3
    assert [(status.state, status.attempt) for status in topics.statuses()] == [
        (JobState.RUNNING, 1),
        (JobState.RETRYING, 2),
        (JobState.RETRYING, 3),
        (JobState.COMPLETED, 1),
    ]


def test_after_the_last_attempt_there_is_a_retryable_dead_letter(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(1))

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        raise Retryable(f"503 for {envelope.job.job_id}")

    run_main(flow_of(runtime_on(topics), work))
    (letter,) = topics.dead_letters()
    assert (letter.attempts, letter.error_class, letter.retryable) == (3, "retryable", True)
    assert letter.step == "test.work"
    assert letter.message == "503 for j0"
    assert letter.first_failed_at < letter.failed_at
    assert topics.statuses()[-1].state is JobState.DEAD_LETTERED


def test_poison_is_dead_lettered_at_once_and_its_neighbours_pass(runtime_on: MakeRuntime) -> None:
    entries = uploads(20)
    topics = MemoryTopics(entries)
    calls: Counter[str] = Counter()

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        calls[envelope.job.job_id] += 1
        if envelope.job.job_id == "j7":
            raise Poison("cannot work")
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    (letter,) = topics.dead_letters()
    original = entries[7]
    assert not isinstance(original, TestingSource.ABORT | TestingSource.EOF)
    assert (letter.message_value, letter.message_key, letter.offset) == (original.value, original.key, 7)
    assert calls["j7"] == 1
    assert len(indexed(topics)) == 19


def test_an_unexpected_exception_costs_one_message_and_shows_no_text(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(3))

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        if envelope.job.job_id == "j1":
            raise KeyError(envelope.body.text)
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    (letter,) = topics.dead_letters()
    assert letter.error_type == "KeyError"
    assert "text 1" not in letter.message
    assert sorted(indexed(topics)) == ["j0", "j2"]


def test_a_hung_call_is_cancelled_and_tried_again(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(1))
    cancelled = 0

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        nonlocal cancelled
        if cancelled == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise
        return done(envelope)

    policy = OffloadPolicy(timeout_s=0.05, backoff_base_s=0.01)
    run_main(flow_of(runtime_on(topics), work, policy))
    assert cancelled == 1
    assert indexed(topics) == ["j0"]


def test_a_fatal_error_stops_the_flow_and_says_why(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(3))

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        raise Fatal(f"401: the key is wrong ({envelope.job.job_id})")

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run_main(flow_of(runtime_on(topics), work))
    assert "the key is wrong" in fatal_cause(stopped.value)
    assert indexed(topics) == []


def fatal_cause(error: BaseException) -> str:
    """The message of the Fatal below Bytewax's own errors, or nothing."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Fatal):
        cause = cause.__cause__
    return str(cause or "")


def test_a_call_that_cancels_itself_is_tried_again(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(1))
    calls = 0

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    assert (calls, indexed(topics)) == (2, ["j0"])


def test_a_call_that_ends_in_no_known_way_stops_the_flow_instead_of_hanging_it(runtime_on: MakeRuntime) -> None:
    class Odd(BaseException):
        pass

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        del envelope
        raise Odd

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run_main(flow_of(runtime_on(MemoryTopics(uploads(1))), work))
    assert "a call ended with Odd" in fatal_cause(stopped.value)


def test_messages_of_one_key_keep_their_order_where_asked_for(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(30, key="same"))
    delays = {f"j{n}": 0.003 if n % 3 == 0 else 0.0 for n in range(30)}

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        await asyncio.sleep(delays[envelope.job.job_id])
        return done(envelope)

    policy = OffloadPolicy(capacity=8, backlog=8, keep_key_order=True)
    run_main(flow_of(runtime_on(topics), work, policy))
    assert indexed(topics) == [f"j{n}" for n in range(30)]


def test_a_slow_key_does_not_hold_up_the_others(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics(uploads(10))
    others = 0
    all_others = asyncio.Event()

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        nonlocal others
        if envelope.job.job_id == "j0":
            await all_others.wait()
        else:
            others += 1
            if others == 9:
                all_others.set()
        return done(envelope)

    run_main(flow_of(runtime_on(topics), work))
    assert len(indexed(topics)) == 10


def test_what_was_in_flight_at_a_crash_is_done_after_the_restart(
    runtime_on: MakeRuntime, recovery: RecoveryConfig
) -> None:
    """The source does not read the messages again: they come from the snapshot."""
    entries: list[Entry] = [*uploads(5), TestingSource.ABORT()]
    topics = MemoryTopics(entries)
    first: list[str] = []

    async def hang(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        first.append(envelope.job.job_id)
        await asyncio.Event().wait()
        return done(envelope)

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        return done(envelope)

    run_main(flow_of(runtime_on(topics), hang), epoch_interval=timedelta(0), recovery_config=recovery)
    assert first == [f"j{n}" for n in range(5)]
    run_main(flow_of(runtime_on(topics), work), epoch_interval=timedelta(0), recovery_config=recovery)
    assert sorted(indexed(topics)) == [f"j{n}" for n in range(5)]


class _Idle(StatefulSourcePartition[Record, int]):
    """Emits nothing, until told that it may end; gives up after 20 s."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended
        self._deadline = monotonic() + 20

    def next_batch(self) -> list[Record]:
        if self._ended() or monotonic() > self._deadline:
            raise StopIteration
        return []

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=5)

    def snapshot(self) -> int:
        return 0


class IdleTopics(MemoryTopics):
    """Nothing new comes; the input ends when `ended` says so."""

    def __init__(self, ended: Callable[["IdleTopics"], bool]) -> None:
        super().__init__([])
        self._ended = ended
        self.ended_in_time = False

    def source(self, event: type[Event]) -> Source[Record]:
        del event
        topics = self

        class IdleSource(FixedPartitionedSource[Record, int]):
            def list_parts(self) -> list[str]:
                return ["iterable"]

            def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Idle:
                del step_id, for_part, resume_state
                return _Idle(topics.look)

        return IdleSource()

    def look(self) -> bool:
        self.ended_in_time = self._ended(self)
        return self.ended_in_time


def test_resumed_work_is_emitted_although_no_new_message_comes(
    runtime_on: MakeRuntime, recovery: RecoveryConfig
) -> None:
    """Found by killing a real flow: the lane was not woken after a restart until a message or the end came."""

    async def hang(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        await asyncio.Event().wait()
        return done(envelope)

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        return done(envelope)

    before = MemoryTopics([*uploads(3), TestingSource.ABORT()])
    run_main(flow_of(runtime_on(before), hang), epoch_interval=timedelta(0), recovery_config=recovery)
    after = IdleTopics(lambda topics: len(indexed(topics)) == 3)
    run_main(flow_of(runtime_on(after), work), epoch_interval=timedelta(0), recovery_config=recovery)
    assert after.ended_in_time


class AbortOnceSet:
    """Entries that end in an abort, which waits for an event. Read again after a restart, it waits no more."""

    def __init__(self, entries: list[Entry], event: ThreadEvent) -> None:
        self._entries = entries
        self._event = event
        self._abort = TestingSource.ABORT()  # takes effect once

    def __iter__(self) -> Iterator[Entry]:
        yield from self._entries[:-1]
        assert self._event.wait(timeout=20)
        yield self._entries[-1]  # one more epoch, so that what happened before is in a snapshot
        yield self._abort


def test_failed_attempts_survive_a_crash(runtime_on: MakeRuntime, recovery: RecoveryConfig) -> None:
    failed = ThreadEvent()
    topics = MemoryTopics(AbortOnceSet(uploads(2), failed))
    calls: Counter[str] = Counter()
    policy = OffloadPolicy(attempts=2, backoff_base_s=0.001)

    async def fail_then_hang(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        calls[envelope.job.job_id] += 1
        if calls["j0"] == 1:
            raise Retryable("first failure")
        failed.set()
        await asyncio.Event().wait()
        return done(envelope)

    async def fail(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        calls[envelope.job.job_id] += 1
        raise Retryable("second failure")

    run_main(flow_of(runtime_on(topics), fail_then_hang, policy), epoch_interval=timedelta(0), recovery_config=recovery)
    assert calls["j0"] == 2
    run_main(flow_of(runtime_on(topics), fail, policy), epoch_interval=timedelta(0), recovery_config=recovery)
    assert calls["j0"] == 3  # the crash cost the call in flight, not the budget: one attempt was left
    assert {letter.job_id: letter.attempts for letter in topics.dead_letters()} == {"j0": 2, "j1": 2}


def test_a_stop_leaves_unfinished_work_in_the_snapshot(runtime_on: MakeRuntime, recovery: RecoveryConfig) -> None:
    topics = MemoryTopics([*uploads(40), TestingSource.EOF()])
    runtime = runtime_on(topics)

    async def finish_even_ones(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        if int(envelope.job.job_id[1:]) % 2:
            runtime.stop.request(drain_s=0.3)
            await asyncio.Event().wait()
        return done(envelope)

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        return done(envelope)

    flow = flow_of(runtime, finish_even_ones)
    thread = Thread(
        target=lambda: cluster_main(flow, [], 0, epoch_interval=timedelta(seconds=1), recovery_config=recovery)
    )
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    finished = set(indexed(topics))
    assert finished < {f"j{n}" for n in range(40)}
    run_main(flow_of(runtime_on(topics), work), recovery_config=recovery)
    assert Counter(indexed(topics)) == Counter({f"j{n}": 1 for n in range(40)})


def test_a_job_past_its_deadline_is_not_called(runtime_on: MakeRuntime) -> None:
    late = RequestSubmitted.model_validate(
        {"job_id": "late", "prompt": "?", "deadline_at": utc_now() - timedelta(seconds=1)}
    )
    topics = MemoryTopics([record(late)])
    runtime = runtime_on(topics)
    calls: list[str] = []

    async def work(envelope: Envelope[RequestSubmitted]) -> DocumentIndexed:
        calls.append(envelope.job.job_id)
        return DocumentIndexed(job_id="late", document_id="d", chunks=0, model="m")

    run_main(request_flow(runtime, work))
    (letter,) = topics.dead_letters()
    assert (letter.error_type, letter.retryable) == ("DeadlineExceeded", False)
    assert calls == []


def test_a_deadline_cuts_a_call_short(runtime_on: MakeRuntime) -> None:
    soon = RequestSubmitted.model_validate(
        {"job_id": "soon", "prompt": "?", "deadline_at": utc_now() + timedelta(seconds=0.3)}
    )
    topics = MemoryTopics([record(soon)])

    async def hang(envelope: Envelope[RequestSubmitted]) -> DocumentIndexed:
        await asyncio.Event().wait()
        return DocumentIndexed(job_id=envelope.job.job_id, document_id="d", chunks=0, model="m")

    run_main(request_flow(runtime_on(topics), hang))
    (letter,) = topics.dead_letters()
    assert letter.job_id == "soon"


def request_flow(
    runtime: Runtime, work: Callable[[Envelope[RequestSubmitted]], Awaitable[DocumentIndexed]]
) -> Dataflow:
    flow = Dataflow("test")
    submitted = consume("submitted", flow, RequestSubmitted, runtime)
    worked = offload("work", submitted.oks, work, body=RequestSubmitted, policy=QUICK, runtime=runtime)
    produce("indexed", worked.oks, DocumentIndexed, runtime)
    dead_letter("dlq", submitted.errs, worked.errs, runtime=runtime)
    return flow


@given(failures=st.integers(1, 64), retry_after_s=st.none() | st.floats(0, 3600))
def test_backoff_stays_below_its_ceiling_and_obeys_retry_after(failures: int, retry_after_s: float | None) -> None:
    policy = OffloadPolicy()
    wait_s = backoff_s(policy, failures, retry_after_s=retry_after_s)
    ceiling = min(policy.backoff_cap_s, policy.backoff_base_s * 2 ** (failures - 1))
    assert (retry_after_s or 0.0) <= wait_s <= max(ceiling, retry_after_s or 0.0)


def test_an_outage_of_days_never_overflows_the_backoff() -> None:
    assert backoff_s(OffloadPolicy(), 100_000) <= OffloadPolicy().backoff_cap_s
