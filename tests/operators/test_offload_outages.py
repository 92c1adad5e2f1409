"""An outage is waiting and one bad message is not an outage; fairness, coalescing and pressure on real dataflows."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSource, run_main

from connectors.circuit import CircuitPolicy, Circuits
from connectors.event_loop import EventLoop
from connectors.kafka.stop import Stop
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.envelope import Envelope
from operators.offload import Around, Dropped, OffloadPolicy, Pending, offload
from operators.produce import produce
from operators.runtime import Runtime
from schemas.errors import Isolated, Poison, Retryable, TookTooLong, Unavailable
from schemas.event import utc_now
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted, Timings, TokenCount
from tests.memory_topics import Entry, MemoryTopics, record

QUICK = OffloadPolicy(
    capacity=8, backlog=8, dependency="thing", timeout_s=5.0, attempts=3, backoff_base_s=0.001, backoff_cap_s=0.01
)
CIRCUIT = CircuitPolicy(items=3, cooldown_s=0.01, cooldown_cap_s=0.02)
Work = Callable[[Envelope[RequestSubmitted]], Awaitable[ResultCompleted]]


def asked(job_id: str, *, prompt: str = "?", tenant: str = "default", **more: object) -> RequestSubmitted:
    fields = {"job_id": job_id, "tenant": tenant, "prompt": prompt} | more
    return RequestSubmitted.model_validate(fields)


def entries(*requests: RequestSubmitted) -> list[Entry]:
    return [record(request, offset=n) for n, request in enumerate(requests)]


def done(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
    return ResultCompleted(
        job_id=envelope.job.job_id,
        tenant=envelope.job.tenant,
        kind="generate",
        text="x",
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=1, completion_tokens=1),
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=0),
    )


def run(
    topics: MemoryTopics,
    work: Work,
    policy: OffloadPolicy = QUICK,
    *,
    around: Around[RequestSubmitted, ResultCompleted] | None = None,
    coalesce: bool = False,
    recovery: RecoveryConfig | None = None,
) -> Runtime:
    """One process, to the end of its input."""
    with EventLoop() as loop:
        runtime = Runtime(topics, loop, Stop(), circuits=Circuits(CIRCUIT))
        flow = Dataflow("test")
        submitted = consume("submitted", flow, RequestSubmitted, runtime)
        same = (lambda envelope: envelope.body.prompt or "") if coalesce else None
        worked = offload(
            "work",
            submitted.oks,
            work,
            body=RequestSubmitted,
            policy=policy,
            runtime=runtime,
            around=around,
            same=same,
        )
        produce("completed", worked.oks, ResultCompleted, runtime)
        dead_letter("dlq", submitted.errs, worked.errs, runtime=runtime)
        run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)
    return runtime


def completed(topics: MemoryTopics) -> Counter[str]:
    return Counter(str(payload["job_id"]) for payload in topics.on("results.completed"))


@pytest.mark.parametrize("error", [Unavailable("refused"), Retryable("503")])
def test_an_outage_is_waited_out_without_a_dead_letter(error: Retryable) -> None:
    topics = MemoryTopics(entries(*(asked(f"j{n}") for n in range(40))))
    calls = 0
    called: set[str] = set()
    several = asyncio.Event()  # or the first one could use up its attempts, a millisecond apart, before others come

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        nonlocal calls
        calls += 1
        called.add(envelope.job.job_id)
        if len(called) >= CIRCUIT.items:
            several.set()
        await several.wait()
        if calls < 60:  # far more than the attempts of any of them
            raise error
        return done(envelope)

    run(topics, work)
    assert topics.dead_letters() == []
    assert completed(topics) == Counter({f"j{n}": 1 for n in range(40)})


@pytest.mark.parametrize("error", [Poison("refused"), Retryable("500"), TookTooLong("hangs")])
def test_one_bad_message_is_one_dead_letter_and_no_outage(error: Exception) -> None:
    topics = MemoryTopics(entries(asked("bad"), *(asked(f"j{n}") for n in range(40))))

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        await asyncio.sleep(0)
        if envelope.job.job_id == "bad":
            raise error
        return done(envelope)

    runtime = run(topics, work)
    (letter,) = topics.dead_letters()
    assert letter.job_id == "bad"
    assert completed(topics).total() == 40
    assert runtime.circuits.of("thing").state == 0


def test_places_of_their_own_that_are_out_are_dead_letters_and_no_outage() -> None:
    topics = MemoryTopics(entries(*(asked(f"j{n}") for n in range(10))))

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        await asyncio.sleep(0)
        raise Isolated(f"the server of {envelope.job.job_id} answers 503")

    runtime = run(topics, work)
    assert len(topics.dead_letters()) == 10
    assert runtime.circuits.of("thing").state == 0


def test_a_deadline_ends_a_wait_for_a_dependency_that_is_out() -> None:
    deadline = utc_now() + timedelta(seconds=0.5)
    back_at = deadline + timedelta(seconds=1.0)
    topics = MemoryTopics(entries(asked("dated", deadline_at=deadline.isoformat()), asked("patient")))

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        if utc_now() < back_at:
            raise Unavailable("refused")
        return done(envelope)

    run(topics, work)
    (letter,) = topics.dead_letters()
    assert (letter.job_id, letter.error_type) == ("dated", "DeadlineExceeded")
    assert letter.failed_at < back_at
    assert completed(topics) == Counter({"patient": 1})


def test_equal_requests_in_flight_are_one_call_and_others_are_not_coalesced() -> None:
    same = [asked("a", prompt="one") for _ in range(5)]
    topics = MemoryTopics(entries(*same, asked("a", prompt="two"), asked("b", prompt="one")), batch_size=10)
    calls: Counter[tuple[str, str | None]] = Counter()
    taken = asyncio.Event()

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        calls[envelope.job.job_id, envelope.body.prompt] += 1
        if len(calls) == 3:
            taken.set()
        await taken.wait()
        return done(envelope)

    run(topics, work, coalesce=True)
    assert calls == Counter({("a", "one"): 1, ("a", "two"): 1, ("b", "one"): 1})
    assert completed(topics) == Counter({"a": 2, "b": 1})


def test_followers_end_with_a_leader_that_is_dead_lettered() -> None:
    topics = MemoryTopics(entries(*(asked("a") for _ in range(5))), batch_size=10)

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        del envelope
        await asyncio.sleep(0.05)
        raise Poison("no")

    run(topics, work, coalesce=True)
    assert len(topics.dead_letters()) == 1


def test_leaders_followers_and_attempts_survive_a_crash(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    recovery = RecoveryConfig(str(tmp_path))
    first = entries(*(asked("a") for _ in range(3)), asked("failing"))
    topics = MemoryTopics([*first, asked_last(4), TestingSource.ABORT(), asked_last(5)])
    crashed = False

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        if envelope.job.job_id == "failing":
            raise Retryable("500")
        if envelope.job.job_id == "a" and not crashed:
            await asyncio.Event().wait()
        return done(envelope)

    slow = replace(QUICK, backoff_base_s=30.0, backoff_cap_s=60.0, dependency=None)  # one failure, then a long wait
    run(topics, work, slow, coalesce=True, recovery=recovery)
    crashed = True
    run(topics, work, replace(QUICK, dependency=None), coalesce=True, recovery=recovery)
    (letter,) = topics.dead_letters()
    assert (letter.job_id, letter.attempts) == ("failing", QUICK.attempts)
    assert completed(topics)["a"] == 1


def asked_last(offset: int) -> Entry:
    return record(asked(f"last{offset}"), offset=offset)


def test_capacity_is_shared_between_tenants_in_turns() -> None:
    burst = [asked(f"a{n}", tenant="a") for n in range(50)]
    topics = MemoryTopics(entries(*burst, asked("b0", tenant="b")), batch_size=100)
    order: list[str] = []
    everybody = asyncio.Event()

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        if not order:
            asyncio.get_running_loop().call_later(0.3, everybody.set)
        order.append(envelope.job.job_id)
        await everybody.wait()
        return done(envelope)

    run(topics, work, replace(QUICK, capacity=1, backlog=100))
    assert order.index("b0") <= 2


def test_the_sources_are_told_to_wait_at_the_bound_and_to_go_on_below_it() -> None:
    topics = MemoryTopics(entries(*(asked(f"j{n}") for n in range(17))), batch_size=1)
    seen: list[bool] = []
    with EventLoop() as loop:
        runtime = Runtime(topics, loop, Stop())
        full = asyncio.Event()

        async def look() -> None:
            while not runtime.pressure.high:  # another thread raises it
                await asyncio.sleep(0.001)
            seen.append(True)
            full.set()

        async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
            await full.wait()
            return done(envelope)

        flow = Dataflow("test")
        submitted = consume("submitted", flow, RequestSubmitted, runtime)
        worked = offload("work", submitted.oks, work, body=RequestSubmitted, policy=QUICK, runtime=runtime)
        produce("completed", worked.oks, ResultCompleted, runtime)
        dead_letter("dlq", submitted.errs, worked.errs, runtime=runtime)
        loop.submit(look())
        run_main(flow)
    assert seen == [True]
    assert not runtime.pressure.high
    assert completed(topics).total() == 17


def test_what_is_dropped_by_the_ledger_leaves_no_result_and_no_dead_letter() -> None:
    topics = MemoryTopics(entries(asked("again"), asked("new")))

    async def work(envelope: Envelope[RequestSubmitted]) -> ResultCompleted:
        return done(envelope)

    async def around(
        pending: Pending[RequestSubmitted], call: Callable[[], Awaitable[ResultCompleted]]
    ) -> ResultCompleted | Dropped:
        if pending.envelope.job.job_id == "again":
            pending.tell(JobState.COMPLETED, "done before")
            return Dropped()
        return await call()

    run(topics, work, around=around)
    assert completed(topics) == Counter({"new": 1})
    assert topics.dead_letters() == []
    assert [status.state for status in topics.statuses() if status.job_id == "again"][-1] is JobState.COMPLETED
