"""What is called for is charged, however often a job is submitted; and every submission ends in sight."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bytewax.testing import run_main

from connectors.circuit import CircuitPolicy, Circuits
from connectors.event_loop import EventLoop
from connectors.kafka.record import Record
from connectors.kafka.stop import Stop
from connectors.ledger.off import NoLedger
from connectors.ledger.port import Attempt, Claim, Failure, Ledger
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from connectors.llm.port import LLM, Completion, Delta, Prompt, WantedTool
from flows import answer
from operators.budget import BudgetPolicy
from operators.infer import INFER, call_id, hash_of
from operators.repeat import known_result
from operators.runtime import Runtime
from schemas.budgets import Budget, WindowLimit
from schemas.errors import Bill, Retryable, Unavailable
from schemas.event import utc_now
from schemas.requests import RequestSubmitted, Tool
from schemas.usage import TokensUsed
from tests.memory_topics import Entry, MemoryTopics, record

QUICK = replace(INFER, attempts=2, backoff_base_s=0.01, backoff_cap_s=0.02, timeout_s=5.0)


class Model(LLM):
    """Answers at a price of 100 tokens."""

    def __init__(self) -> None:
        self.calls = 0

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        self.calls += 1
        yield Completion(prompt.job_id, "m", 60, 40, (), "stop")

    async def close(self) -> None:
        return None


def asked(offset: int, *, left_s: float | None = None, job_id: str = "j") -> Record:
    deadline = None if left_s is None else utc_now() + timedelta(seconds=left_s)
    request = RequestSubmitted(job_id=job_id, kind="generate", prompt="Why?", max_tokens=100, deadline_at=deadline)
    return record(request, offset=offset)


def run(*entries: Entry, model: LLM, store: Path | None = None, limit: int | None = None) -> MemoryTopics:
    topics = MemoryTopics(list(entries))
    absent: Any = SimpleNamespace()
    windows = None if limit is None else (WindowLimit(seconds=86_400, tokens=limit),)
    budget = Budget() if windows is None else Budget(windows=windows)
    with EventLoop() as loop:
        runtime = Runtime(topics, loop, Stop(), circuits=Circuits(CircuitPolicy(cooldown_s=0.01, cooldown_cap_s=0.02)))
        policy = answer.AnswerPolicy(inference=QUICK, budget=BudgetPolicy(budget))
        ledger: Ledger = NoLedger() if store is None else SqlLedger(SqliteStore(store), "owner")
        run_main(answer.build(runtime, absent, absent, model, ledger, policy))
        loop.run(ledger.close(), timeout_s=10)
    return topics


def used(topics: MemoryTopics) -> dict[str, int]:
    """Tokens by admission: the first settlement counts."""
    charged: dict[str, int] = {}
    for each in topics.on("usage.tokens"):
        event = TokensUsed.model_validate(each)
        charged.setdefault(event.admission_id, event.tokens)
    return charged


def test_a_job_submitted_again_after_its_deadline_is_charged_for_its_call() -> None:
    model = Model()
    late, again = asked(0, left_s=-1), asked(1, left_s=600)
    charged = used(run(late, model=model)) | used(run(again, model=model))
    assert (model.calls, sorted(charged.values())) == (1, [0, 100])


def test_without_a_ledger_every_call_is_charged() -> None:
    model = Model()
    charged: dict[str, int] = {}
    for offset in range(5):
        charged |= used(run(asked(offset), model=model))
    assert (model.calls, sum(charged.values())) == (5, 500)


def test_a_replay_of_a_message_is_the_same_admission() -> None:
    first, replayed = (used(run(asked(7), model=Model())) for _ in range(2))
    assert first == replayed


def test_of_duplicates_in_flight_one_is_charged_and_every_reservation_is_given_back() -> None:
    model = Model()
    charged = used(run(*(asked(offset) for offset in range(5)), model=model))
    assert sum(charged.values()) == 100 * model.calls
    assert len(charged) == 5


def test_a_repeat_that_the_budget_rejects_does_not_end_the_job_that_goes_on() -> None:
    topics = run(*(asked(offset) for offset in range(2)), model=Model(), limit=500)
    for letter in topics.dead_letters():  # if the first was settled by then, there was room for both
        assert (letter.error_type, letter.ends_job) == ("OverBudget", False)
    assert "completed" in {status.state for status in topics.statuses()}


class Slow(Model):
    """Does not answer in time while `silent`; or fails while `broken`."""

    silent = False
    broken = False

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        if self.silent:
            self.calls += 1
            await asyncio.Event().wait()
        if self.broken:
            raise Unavailable("the endpoint is down")
        async for part in super().stream(prompt):
            yield part


@pytest.mark.parametrize("fault", ["silent", "broken"])
def test_a_job_that_its_deadline_ended_is_answered_when_submitted_again_with_a_later_one(
    tmp_path: Path, fault: str
) -> None:
    model, store = Slow(), tmp_path / "ledger.sqlite"
    setattr(model, fault, True)
    (letter,) = run(asked(0, left_s=0.5), model=model, store=store).dead_letters()
    assert letter.error_type == "DeadlineExceeded"
    setattr(model, fault, False)
    again = run(asked(1, left_s=600), asked(2, left_s=900), model=model, store=store)
    assert {each["text"] for each in again.on("results.completed")} == {"j"}
    assert again.dead_letters() == []


def test_a_job_whose_last_call_failed_is_not_taken_for_one_that_goes_on(tmp_path: Path) -> None:
    request = RequestSubmitted(job_id="j", kind="generate", prompt="Why?")

    async def look() -> object:
        ledger = SqlLedger(SqliteStore(tmp_path / "ledger.sqlite"), "owner")
        claim = await ledger.claim(Attempt(call_id(request), request.tenant, hash_of(request), "t/0/0", "token"))
        assert isinstance(claim, Claim)
        during = await known_result(request, ledger)
        await ledger.release(claim, failed=False)
        after = await known_result(request, ledger)
        await ledger.close()
        return during, after

    assert asyncio.run(look()) == ("running", None)


class Refusable(Model):
    """Its first answer makes no sense: `nameless`; or it wants a tool that was not offered."""

    def __init__(self, *, nameless: bool) -> None:
        super().__init__()
        self._nameless = nameless

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        self.calls += 1
        if self._nameless and self.calls == 1:
            error = Retryable("the model asks for a tool without naming it")
            error.bill = Bill("m", 60, 40)
            raise error
        wants = None if self._nameless else WantedTool("c", "unknown", "{}")
        yield Completion(prompt.job_id, "m", 60, 40, (), "stop" if wants is None else "tool", wants)


@pytest.mark.parametrize(("nameless", "tokens", "letters"), [(True, 200, 0), (False, 100, 1)])
def test_an_answer_that_is_refused_after_it_was_billed_is_charged(*, nameless: bool, tokens: int, letters: int) -> None:
    topics = run(asked(0), model=Refusable(nameless=nameless))
    (settled,) = topics.on("usage.tokens")
    assert TokensUsed.model_validate(settled).tokens == tokens
    assert settled["model"] == "m"
    assert len(topics.dead_letters()) == letters


def test_a_repeat_of_a_job_that_ended_after_a_tools_answer_is_refused_in_sight(tmp_path: Path) -> None:
    tool = Tool(name="search", parameters={})
    request = RequestSubmitted(job_id="j", kind="generate", prompt="Why?", tools=(tool,))
    asked_for = WantedTool("c", "search", "{}")
    store = tmp_path / "ledger.sqlite"

    class Wanting(Model):
        async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
            yield Completion(prompt.job_id, "m", 60, 40, (), "tool", asked_for)

    async def bury_the_second_turn() -> None:
        ledger = SqlLedger(SqliteStore(store), "owner")
        claim = await ledger.claim(Attempt("j/1", request.tenant, "h", "tools.requested/0/0", "token"))
        assert isinstance(claim, Claim)
        await ledger.give_up(claim, Failure("poison", "DeadlineExceeded", "late", 1))
        await ledger.close()

    run(record(request), model=Wanting(), store=store)
    asyncio.run(bury_the_second_turn())
    twice = (record(request, offset=1), record(request, offset=2))  # the second is a repeat for this process, too
    (letter,) = run(*twice, model=Wanting(), store=store).dead_letters()
    assert (letter.error_type, letter.ends_job) == ("Refused", False)
    assert "under another job_id" in letter.message
