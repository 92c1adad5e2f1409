"""One bill per job, whatever comes again: replays, duplicates, crashes, outages, redrives."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from bytewax.testing import run_main
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from connectors.circuit import CircuitPolicy, Circuits
from connectors.event_loop import EventLoop
from connectors.kafka.record import Record
from connectors.kafka.stop import Stop
from connectors.ledger.patient import PatientLedger
from connectors.ledger.port import Attempt, Claim, ClaimOutcome, Failure, JobRecord, Known, Ledger, Usage
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from connectors.llm.port import LLM, Completion, Delta, Prompt
from flows import answer
from operators.infer import INFER, request_hash
from operators.paid_once import AmbiguityPolicy
from operators.retrieve import RetrievedRequest
from operators.runtime import Runtime
from schemas.dead_letter import REDRIVE_HEADER
from schemas.errors import Bill, Poison, Retryable, Unavailable
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from schemas.results import Citation, ResultCompleted, Timings, TokenCount
from tests.memory_topics import MemoryTopics, record

POLICY = replace(INFER, capacity=8, backlog=8, attempts=3, backoff_base_s=0.01, backoff_cap_s=0.02, timeout_s=5.0)


class Model(LLM):
    """Answers each call differently, or raises what is next in line for the job."""

    def __init__(self, failures: dict[str, list[Exception]] | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self._failures = failures or {}

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        self.calls[prompt.job_id] += 1
        await asyncio.sleep(0)
        failures = self._failures.get(prompt.job_id)
        if failures:
            raise failures.pop(0)
        yield Completion(f"{prompt.job_id} call {self.calls[prompt.job_id]}", "m", 3, 5, (), "stop")

    async def close(self) -> None:
        return None


def asked(
    job_id: str = "j", *, prompt: str = "Why?", tenant: str = "acme", offset: int = 0, redrives: int = 0
) -> Record:
    request = RequestSubmitted(job_id=job_id, tenant=tenant, kind="generate", prompt=prompt)
    headers = ((REDRIVE_HEADER, str(redrives).encode()),) if redrives else ()
    return replace(record(request, offset=offset), headers=headers)


class Answers:
    """The answer flow as one process after the other runs it, on one ledger file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.sqlite"

    def run(
        self,
        model: Model,
        *records: Record,
        wrap: Callable[[Ledger], Ledger] = lambda ledger: ledger,
        ambiguity: AmbiguityPolicy = AmbiguityPolicy(),  # noqa: B008  # frozen
    ) -> MemoryTopics:
        """One process, from its start to the end of its input."""
        topics = MemoryTopics(list(records))
        absent: Any = SimpleNamespace()
        with EventLoop() as loop:
            circuits = Circuits(CircuitPolicy(cooldown_s=0.01, cooldown_cap_s=0.02))
            runtime = Runtime(topics, loop, Stop(), circuits=circuits)
            inner = SqlLedger(SqliteStore(self.path), "owner")
            ledger = PatientLedger(wrap(inner), circuits.of("ledger"))
            policy = answer.AnswerPolicy(inference=POLICY, ambiguity=ambiguity)
            run_main(answer.build(runtime, absent, absent, model, ledger, policy))
            loop.run(asyncio.sleep(0.05), timeout_s=5)  # what was told of publication is written
            loop.run(inner.close(), timeout_s=10)
        return topics

    def before(self, use: Callable[[SqlLedger], Awaitable[None]]) -> None:
        """What a former process left behind."""

        async def run() -> None:
            ledger = SqlLedger(SqliteStore(self.path), "owner")
            try:
                await use(ledger)
            finally:
                await ledger.close()

        asyncio.run(run())


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path)


def attempt_at(at: Record) -> Attempt:
    request = RequestSubmitted.model_validate_json(at.value or b"")
    asks = request_hash(RetrievedRequest(request, (), 0.0))
    return Attempt(request.job_id, request.tenant, asks, f"{at.topic}/{at.partition}/{at.offset}", uuid4().hex)


def results(topics: MemoryTopics) -> list[bytes]:
    return [written.value for written in topics.written if written.topic == "results.completed"]


def last_state(topics: MemoryTopics) -> JobState:
    return topics.statuses()[-1].state


def test_a_replay_after_publication_makes_no_call_publishes_nothing_and_stays_completed(answers: Answers) -> None:
    model = Model()
    assert len(results(answers.run(model, asked()))) == 1
    again = answers.run(model, asked())
    assert (results(again), model.calls["j"]) == ([], 1)
    assert last_state(again) is JobState.COMPLETED


def test_a_duplicate_gets_the_stored_bytes_without_a_call(answers: Answers) -> None:
    model = Model()
    (first,) = results(answers.run(model, asked()))
    (second,) = results(answers.run(model, asked(offset=7)))
    assert (first, model.calls["j"]) == (second, 1)


def test_duplicates_at_once_are_one_call_and_one_result(answers: Answers) -> None:
    model = Model()
    topics = answers.run(model, *(asked(offset=n) for n in range(5)))
    assert model.calls["j"] == 1
    assert len(set(results(topics))) == 1


def test_another_request_under_the_same_id_is_refused_and_the_job_stays_as_it_is(answers: Answers) -> None:
    model = Model()
    answers.run(model, asked())
    topics = answers.run(model, asked(prompt="Something else?", offset=1))
    (letter,) = topics.dead_letters()
    assert (letter.ends_job, letter.error_type, model.calls["j"]) == (False, "Refused", 1)
    assert JobState.DEAD_LETTERED not in {status.state for status in topics.statuses()}
    assert last_state(topics) is JobState.COMPLETED


def test_what_a_crash_interrupted_is_called_again_by_default_and_counted(answers: Answers) -> None:
    async def crash(ledger: SqlLedger) -> None:
        assert isinstance(await ledger.claim(attempt_at(asked())), Claim)

    answers.before(crash)
    counted = REGISTRY.get_sample_value("headrace_ambiguous_claims_total", {"tenant": "acme"}) or 0.0
    model = Model()
    topics = answers.run(model, asked())
    assert (len(results(topics)), model.calls["j"]) == (1, 1)
    assert REGISTRY.get_sample_value("headrace_ambiguous_claims_total", {"tenant": "acme"}) == counted + 1
    assert any("ambiguous" in (status.detail or "") for status in topics.statuses())


def test_a_tenant_may_choose_a_dead_letter_instead_and_a_redrive_then_calls(answers: Answers) -> None:
    async def crash(ledger: SqlLedger) -> None:
        await ledger.claim(attempt_at(asked()))

    answers.before(crash)
    model = Model()
    careful = AmbiguityPolicy(tenants={"acme": "dead_letter"})
    (letter,) = answers.run(model, asked(), ambiguity=careful).dead_letters()
    assert (letter.retryable, model.calls["j"]) == (True, 0)
    assert len(answers.run(model, asked(), ambiguity=careful).dead_letters()) == 1  # a replay: still given up
    topics = answers.run(model, asked(offset=1, redrives=1), ambiguity=careful)
    assert (len(results(topics)), model.calls["j"]) == (1, 1)


def test_attempts_survive_a_crash(answers: Answers) -> None:
    async def fail_twice(ledger: SqlLedger) -> None:
        for _ in range(2):
            claim = await ledger.claim(attempt_at(asked()))
            assert isinstance(claim, Claim)
            await ledger.release(claim, failed=True)

    answers.before(fail_twice)
    model = Model({"j": [Retryable("503")] * 9})
    (letter,) = answers.run(model, asked()).dead_letters()
    assert (letter.attempts, model.calls["j"]) == (3, 1)


@pytest.mark.parametrize("failure", [Poison("refused"), Retryable("503")])
def test_a_given_up_job_is_buried_again_on_replay_and_called_once_per_redrive(
    answers: Answers, failure: Exception
) -> None:
    model = Model({"j": [failure] * POLICY.attempts})
    (letter,) = answers.run(model, asked()).dead_letters()
    called = model.calls["j"]
    (replayed,) = answers.run(Model({"j": []}), asked()).dead_letters()
    assert (replayed.event_id, replayed.retryable) == (letter.event_id, letter.retryable)
    model = Model()
    redriven = answers.run(model, asked(offset=1, redrives=1), asked(offset=2, redrives=1))
    assert model.calls["j"] == 1
    assert len(set(results(redriven))) == 1
    assert called == letter.attempts


class Flaky(Ledger):
    """Out of reach for a while, at the chosen operation; what it was asked may or may not have happened."""

    def __init__(self, inner: Ledger, operation: str, *, happens: bool) -> None:
        self._inner = inner
        self._operation = operation
        self._happens = happens
        self._left = 3

    async def _maybe(self, operation: str, work: Awaitable[Any]) -> Any:
        if operation != self._operation or not self._left:
            return await work
        self._left -= 1
        if self._happens:
            await work
        else:
            work.close()  # type: ignore[attr-defined]  # a coroutine
        raise Unavailable("the database is out")

    async def claim(self, attempt: Attempt) -> ClaimOutcome:
        outcome: ClaimOutcome = await self._maybe("claim", self._inner.claim(attempt))
        return outcome

    async def commit(self, claim: Claim, result: bytes, usage: Usage) -> bool:
        return bool(await self._maybe("commit", self._inner.commit(claim, result, usage)))

    async def release(self, claim: Claim, *, failed: bool) -> bool:
        return bool(await self._maybe("release", self._inner.release(claim, failed=failed)))

    async def give_up(self, claim: Claim, failure: Failure) -> bool:
        return await self._inner.give_up(claim, failure)

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        await self._inner.mark_published(job_ids)

    async def find(self, job_id: str) -> JobRecord | None:
        return await self._inner.find(job_id)

    async def look(self, job_id: str) -> Known | None:
        return await self._inner.look(job_id)

    async def close(self) -> None:
        await self._inner.close()


@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("operation", ["claim", "commit", "release"])
def test_an_outage_of_the_ledger_is_waited_out_and_never_pays_twice(
    answers: Answers, operation: str, *, happens: bool
) -> None:
    model = Model({"j": [Retryable("503")]})
    topics = answers.run(model, asked(), wrap=lambda inner: Flaky(inner, operation, happens=happens))
    assert len(results(topics)) == 1
    assert model.calls["j"] == 2
    assert topics.dead_letters() == []


texts = st.text(max_size=40)
fractions = st.floats(0, 1e6, allow_nan=False)


@given(
    st.builds(
        ResultCompleted,
        job_id=st.just("j"),
        kind=st.sampled_from(["answer", "generate"]),
        text=texts,
        finish_reason=st.sampled_from(["stop", "length"]),
        citations=st.tuples(
            st.builds(
                Citation,
                number=st.integers(1, 9),
                document_id=texts,
                chunk_id=texts,
                uri=st.none() | texts,
                label=st.none() | texts,
                text=texts,
                score=st.floats(-1, 1),
            )
        ),
        usage=st.builds(TokenCount, prompt_tokens=st.integers(0), completion_tokens=st.integers(0)),
        model=texts,
        timings=st.builds(Timings, queued_s=fractions, retrieve_s=fractions, infer_s=fractions),
        completed_at=st.datetimes(timezones=st.timezones()),
    )
)
def test_a_stored_result_is_published_byte_for_byte(result: ResultCompleted) -> None:
    stored = result.encode()
    assert ResultCompleted.model_validate_json(stored).encode() == stored


def test_tokens_are_counted_by_call_not_by_answer(answers: Answers) -> None:
    """Replays and duplicates are answered from the ledger; what a refused answer has cost is counted, too."""

    def counted(tenant: str, direction: str) -> float | None:
        labels = {"tenant": tenant, "model": "m", "direction": direction}
        return REGISTRY.get_sample_value("headrace_tokens_total", labels)

    tenant = f"t-{uuid4().hex[:8]}"
    refused = Poison("not what was asked for")
    refused.bill = Bill("m", 100, 50)
    model = Model({"bad": [refused]})
    answers.run(model, asked(tenant=tenant), asked("bad", tenant=tenant, offset=1))
    answers.run(model, asked(tenant=tenant), asked(tenant=tenant, offset=7))
    assert (counted(tenant, "in"), counted(tenant, "out")) == (3 + 100, 5 + 50)
