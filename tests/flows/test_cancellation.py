"""A cancelled job ends where it is, whatever it waits for; its tokens are settled, and nothing else is told of it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from bytewax.testing import run_main

from connectors.cancellations import Cancellations
from connectors.event_loop import EventLoop
from connectors.kafka.stop import Stop
from connectors.ledger.patient import PatientLedger
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from connectors.llm.openai import OpenAICompatibleLLM
from connectors.llm.port import LLM, Completion, Delta, Prompt, WantedTool
from flows import answer
from operators.budget import BudgetPolicy
from operators.guard import GuardPolicy
from operators.infer import INFER
from operators.runtime import Runtime
from schemas.budgets import Budget, WindowLimit
from schemas.cancellations import CancelRequested
from schemas.errors import Retryable
from schemas.jobs import JobState, StatusChanged
from schemas.requests import RequestSubmitted, Tool
from schemas.tools import ToolRequested
from schemas.usage import TokensUsed
from tests.llm_server import LLMServer, Plan, serve
from tests.memory_topics import OpenTopics

QUICK = replace(INFER, capacity=1, backlog=8, attempts=3, backoff_base_s=600.0, backoff_cap_s=600.0, timeout_s=60.0)
REQUEST = RequestSubmitted(job_id="j", tenant="acme", kind="generate", prompt="Why?", max_tokens=100)


class Model(LLM):
    """Writes a word, and goes on when it may; or wants a tool, or fails."""

    model = "m"

    def __init__(self, *, fails: bool = False, tool: str | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.cut: list[str] = []
        self.may_end = False
        self._fails = fails
        self._tool = tool

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        self.calls[prompt.job_id] += 1
        if self._fails:
            raise Retryable("the model answered 503", retry_after_s=600.0)
        if self._tool is not None:
            yield Completion("", "m", 3, 5, (), "tool", WantedTool("c", self._tool, "{}"))
            return
        yield Delta("Because. ")
        try:
            while not self.may_end:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cut.append(prompt.job_id)
            raise
        yield Completion("Because. ", "m", 3, 5, (), "stop")

    async def close(self) -> None:
        return None


def wait_for(what: str, holds: Callable[[], object], within_s: float = 20.0) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, f"waited {within_s} s in vain for {what}"
        time.sleep(0.005)


@dataclass
class Process:
    """The answer flow while it runs."""

    topics: OpenTopics
    cancellations: Cancellations

    def ask(self, job_id: str = "j", **fields: object) -> None:
        self.topics.put(REQUEST.model_copy(update={"job_id": job_id} | fields))

    def cancel(self, job_id: str = "j", *, tenant: str = "acme") -> None:
        self.cancellations.add(CancelRequested(job_id=job_id, tenant=tenant, reason="not needed"))

    def statuses(self, job_id: str = "j") -> list[StatusChanged]:
        return [status for status in self.topics.statuses() if status.job_id == job_id]

    def states(self, job_id: str = "j") -> list[JobState]:
        return [status.state for status in self.statuses(job_id)]

    def wait_for_state(self, state: JobState, job_id: str = "j") -> None:
        wait_for(f"{job_id} {state}", lambda: state in self.states(job_id))

    def ends(self, job_id: str = "j") -> list[JobState]:
        return [state for state in self.states(job_id) if state.terminal]

    def results(self) -> list[object]:
        return [payload["job_id"] for payload in self.topics.on("results.completed")]

    def used(self) -> list[TokensUsed]:
        return [TokensUsed.model_validate(payload) for payload in self.topics.on("usage.tokens")]

    def wait_for_its_end(self, job_id: str = "j") -> None:
        """As cancelled, soon, and as nothing else."""
        began = time.monotonic()
        self.wait_for_state(JobState.CANCELLED, job_id)
        assert time.monotonic() - began < 30.0  # 1 s by design; its backoff is ten minutes
        (status,) = (each for each in self.statuses(job_id) if each.state is JobState.CANCELLED)
        assert (status.detail, status.tenant) == ("not needed", "acme")
        assert job_id not in self.results()
        assert [letter for letter in self.topics.dead_letters() if letter.job_id == job_id] == []


@dataclass
class Installation:
    """One process after the other, on one ledger."""

    directory: Path
    policy: answer.AnswerPolicy = field(default_factory=lambda: answer.AnswerPolicy(inference=QUICK))

    @contextmanager
    def running(self, model: LLM, cancellations: Cancellations | None = None) -> Iterator[Process]:
        process = Process(OpenTopics(), cancellations or Cancellations())
        absent: Any = SimpleNamespace()
        with EventLoop() as loop:
            stop = Stop()
            runtime = Runtime(process.topics, loop, stop, cancellations=process.cancellations)
            store = SqlLedger(SqliteStore(self.directory / "ledger.sqlite"), "owner")
            ledger = PatientLedger(store, runtime.circuits.of("ledger"))
            flow = answer.build(runtime, absent, absent, model, ledger, self.policy)
            failures: list[BaseException] = []

            def run() -> None:
                try:
                    run_main(flow)
                except BaseException as error:  # noqa: BLE001  # shown by the test
                    failures.append(error)

            thread = Thread(target=run)
            thread.start()
            try:
                yield process
            finally:
                stop.request(drain_s=0.5)
                process.topics.close()
                thread.join(30)
                loop.cancel_started()
                loop.run(model.close(), timeout_s=10)
                loop.run(ledger.close(), timeout_s=10)
            assert failures == []


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_a_job_that_is_cancelled_before_it_is_read_makes_no_call(installation: Installation) -> None:
    model = Model()
    with installation.running(model) as process:
        process.cancel()
        process.ask()
        process.wait_for_its_end()
    assert model.calls == {}
    assert [each.tokens for each in process.used()] == []


def test_a_call_is_cut_off_at_once_and_its_tokens_are_settled_as_estimated(installation: Installation) -> None:
    model = Model()
    with installation.running(model) as process:
        process.ask()
        wait_for("the first word", lambda: process.topics.on("results.delta"))
        process.cancel()
        process.wait_for_its_end()
    assert model.cut == ["j"]
    assert process.ends() == [JobState.CANCELLED]
    (used,) = process.used()
    assert (used.prompt_tokens, used.completion_tokens, used.estimated) == (1, 3, True)  # of "Why?" and "Because. "
    assert (used.model, used.job_id, used.root_job_id) == ("m", "j", "j")
    assert [delta["last"] for delta in process.topics.on("results.delta")] == [False]


def test_the_connection_of_a_cancelled_call_closes(installation: Installation) -> None:
    with EventLoop() as serving:
        server = LLMServer(Plan())
        runner, url = serving.run(serve(server), timeout_s=10)
        try:
            with installation.running(OpenAICompatibleLLM(url, "test")) as process:
                process.ask(prompt="FAULT:hang")
                wait_for("the call", server.called.is_set)
                process.cancel()
                process.wait_for_its_end()
                wait_for("the connection to close", server.closed_early.is_set)
        finally:
            serving.run(runner.cleanup(), timeout_s=10)
    (used,) = process.used()
    assert (used.model, used.prompt_tokens, used.estimated) == ("test", 3, True)


def test_a_job_that_waits_for_a_slot_ends_without_one(installation: Installation) -> None:
    model = Model()
    with installation.running(model) as process:
        process.ask("first")
        wait_for("the call", lambda: model.calls["first"])
        process.ask()
        process.wait_for_state(JobState.RUNNING)
        process.cancel()
        process.wait_for_its_end()
        assert process.ends("first") == []
        model.may_end = True
        wait_for("the other's answer", lambda: process.results() == ["first"])
    assert model.calls == {"first": 1}
    assert [each.tokens for each in process.used() if each.job_id == "j"] == [0]


def test_a_job_in_backoff_ends_before_its_next_attempt(installation: Installation) -> None:
    model = Model(fails=True)
    with installation.running(model) as process:
        process.ask()
        process.wait_for_state(JobState.RETRYING)
        process.cancel()
        process.wait_for_its_end()
    assert model.calls == {"j": 1}


def test_a_job_that_its_budget_holds_back_ends_and_those_behind_it_stay_in_order(installation: Installation) -> None:
    window = WindowLimit(seconds=86_400, tokens=1000)
    budget = Budget(windows=(window,), policy="defer")
    installation.policy = replace(installation.policy, budget=BudgetPolicy(budget))
    model = Model()
    with installation.running(model) as process:
        process.ask("first", max_tokens=700)
        wait_for("the call", lambda: model.calls["first"])
        for job_id in ("j", "behind"):
            process.ask(job_id, max_tokens=700)
            process.wait_for_state(JobState.DEFERRED, job_id)
        process.cancel()
        process.wait_for_its_end()
        assert process.states("behind") == [JobState.DEFERRED]
    assert model.calls == {"first": 1}
    assert [each.job_id for each in process.used()] == []  # nothing was reserved for it


def test_a_job_that_waits_for_a_review_ends_and_a_decision_comes_too_late(installation: Installation) -> None:
    installation.policy = replace(installation.policy, guard=GuardPolicy(max_depth=0))
    model = Model()
    with installation.running(model) as process:
        process.ask(depth=3)
        process.wait_for_state(JobState.AWAITING_REVIEW)
        process.cancel()
        process.wait_for_its_end()
    assert model.calls == {}


def test_a_job_that_waits_for_a_tool_ends_without_it(installation: Installation) -> None:
    model = Model(tool="look")
    with installation.running(model) as process:
        tools = (Tool(name="look", description="Looks.", parameters={}),)
        process.ask(tools=tools)
        wait_for("the tool's request", lambda: process.topics.on("tools.requested"))
        (asked,) = process.topics.on("tools.requested")
        process.topics.put(ToolRequested.model_validate(asked))
        process.wait_for_state(JobState.AWAITING_TOOL)
        process.cancel()
        process.wait_for_its_end()
        process.ask(tools=tools)
        wait_for("the end of the repeat", lambda: process.ends() == [JobState.CANCELLED] * 2)
        assert process.topics.dead_letters() == []
    assert model.calls == {"j": 1}
    assert [(each.tokens, each.estimated) for each in process.used()] == [(8, False)]


def test_a_cancel_of_another_tenant_changes_nothing(installation: Installation) -> None:
    model = Model()
    with installation.running(model) as process:
        process.cancel(tenant="rival")
        process.ask()
        wait_for("the call", lambda: model.calls["j"])
        process.cancel(tenant="rival")
        model.may_end = True
        wait_for("the answer", process.results)
        process.wait_for_state(JobState.COMPLETED)
    assert process.ends() == [JobState.COMPLETED]


def test_a_repeat_of_a_cancelled_job_is_cancelled_too_and_makes_no_call_after_a_restart(
    installation: Installation,
) -> None:
    model = Model()
    with installation.running(model) as process:
        process.ask()
        wait_for("the call", lambda: model.calls["j"])
        process.cancel()
        process.wait_for_its_end()
        process.ask()
        wait_for("the end of the repeat", lambda: process.ends() == [JobState.CANCELLED] * 2)
    with installation.running(model) as process:  # which has never heard of the cancellation: the ledger has
        process.ask()
        process.wait_for_its_end()
    assert model.calls == {"j": 1}


def test_a_cancel_that_comes_after_the_answer_changes_nothing(installation: Installation) -> None:
    model = Model()
    model.may_end = True
    with installation.running(model) as process:
        process.ask()
        process.wait_for_state(JobState.COMPLETED)
        process.cancel()
        process.ask()
        wait_for("the stored answer", lambda: process.results() == ["j", "j"])
        process.wait_for_state(JobState.COMPLETED)
    assert JobState.CANCELLED not in process.states()


def test_a_job_whose_answer_is_in_the_ledger_is_not_cancelled_when_its_message_is_read_again(
    installation: Installation,
) -> None:
    model = Model()
    model.may_end = True
    with installation.running(model) as process:
        process.ask()
        process.wait_for_state(JobState.COMPLETED)
    with installation.running(model) as process:  # a crash before the snapshot
        process.cancel()
        process.ask()
        wait_for("its end", process.ends)
    assert process.ends() == [JobState.COMPLETED]
    assert model.calls == {"j": 1}


def test_of_an_answer_and_a_cancel_at_the_same_time_one_is_told(installation: Installation) -> None:
    draw = Random(7)  # noqa: S311  # moments, not secrets
    installation.policy = answer.AnswerPolicy(inference=replace(QUICK, capacity=8))
    model = Model()
    model.may_end = True
    jobs = [f"job-{n}" for n in range(120)]
    with installation.running(model) as process:
        for number, job_id in enumerate(jobs):
            process.ask(job_id)
            if number % 10 == 0:  # so that both ends occur, however busy the machine is
                process.wait_for_state(JobState.COMPLETED, job_id)
            elif number % 10 != 1:
                time.sleep(draw.uniform(0.0, 0.02))
            process.cancel(job_id)
        wait_for("all ends", lambda: all(map(process.ends, jobs)))
    ended = {job_id: process.ends(job_id) for job_id in jobs}
    assert all(len(ends) == 1 for ends in ended.values()), ended
    answered = {job_id for job_id, ends in ended.items() if ends == [JobState.COMPLETED]}
    assert Counter(process.results()) == dict.fromkeys(answered, 1)
    assert 0 < len(answered) < len(jobs), "there was no race: this proves nothing"
    assert process.topics.dead_letters() == []


def test_who_wants_to_be_told_of_a_cancelled_job_is_told_of_one_end(installation: Installation) -> None:
    with installation.running(Model()) as process:
        process.cancel()
        process.ask(callback_url="https://example.org/hook")
        process.wait_for_state(JobState.CANCELLED)
        process.ask(callback_url="https://example.org/hook")
        wait_for("both end", lambda: process.ends().count(JobState.CANCELLED) == 2)
        ends = [status for status in process.statuses() if status.state is JobState.CANCELLED]
    assert {each.callback_url for each in ends} == {"https://example.org/hook"}
    assert len({each.end_id for each in ends} - {None}) == 1


def test_another_tenants_request_under_the_same_id_is_refused_and_does_not_end_with_the_cancelled_job(
    installation: Installation,
) -> None:
    installation.policy = answer.AnswerPolicy(inference=replace(QUICK, capacity=2))
    model = Model()
    with installation.running(model) as process:
        process.ask()
        wait_for("the call", lambda: model.calls["j"])
        process.ask(tenant="rival")
        wait_for("its refusal", process.topics.dead_letters)
        process.cancel()
        process.wait_for_state(JobState.CANCELLED)
    (letter,) = process.topics.dead_letters()
    assert (letter.tenant, letter.ends_job) == ("rival", False)
    assert "belongs to another request" in letter.message
    assert [status.tenant for status in process.statuses() if status.state is JobState.CANCELLED] == ["acme"]
