"""What is told of an answer while it is written: on flows with the ledger on, and alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bytewax.testing import run_main

from connectors.event_loop import EventLoop
from connectors.kafka.record import Record
from connectors.kafka.stop import Stop
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from connectors.llm.openai import OpenAICompatibleLLM
from connectors.llm.port import LLM, Completion, Delta, Prompt
from flows import answer
from operators.envelope import Envelope, job_of
from operators.infer import INFER
from operators.narration import DELTA_MAX_CHARS, INTERVAL_S, Narration
from operators.offload import Pending, Ready
from operators.runtime import Runtime
from schemas.deltas import TextDelta
from schemas.event import Event, utc_now
from schemas.requests import RequestSubmitted, Tool
from schemas.results import ResultCompleted
from tests.flows.test_cancellation import Installation, Model, wait_for
from tests.llm_server import LLMServer, Plan, serve
from tests.memory_topics import MemoryTopics, record

QUICK = replace(INFER, attempts=3, backoff_base_s=0.01, backoff_cap_s=0.02, timeout_s=5.0)


class Writer(LLM):
    """Writes its pieces, one after the other."""

    def __init__(self, pieces: Sequence[str], pause_s: float = 0.0) -> None:
        self._pieces = pieces
        self._pause_s = pause_s

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        del prompt
        for piece in self._pieces:
            yield Delta(piece)
            await asyncio.sleep(self._pause_s)
        yield Completion("".join(self._pieces), "m", 1, 1, (), "stop")

    async def close(self) -> None:
        return None


def asked(job_id: str = "j", *, offset: int = 0, prompt: str = "Why?", **more: object) -> Record:
    fields = {"job_id": job_id, "tenant": "acme", "kind": "generate", "prompt": prompt} | more
    return record(RequestSubmitted.model_validate(fields), offset=offset)


def run(model: LLM, directory: Path, *records: Record) -> MemoryTopics:
    topics = MemoryTopics(list(records))
    absent: Any = SimpleNamespace()
    with EventLoop() as loop:
        ledger = SqlLedger(SqliteStore(directory / "ledger.sqlite"), "owner")
        policy = answer.AnswerPolicy(inference=QUICK)
        run_main(answer.build(Runtime(topics, loop, Stop()), absent, absent, model, ledger, policy))
        loop.run(model.close(), timeout_s=10)
        loop.run(ledger.close(), timeout_s=10)
    return topics


def run_on_a_server(plan: Plan, directory: Path, *records: Record) -> MemoryTopics:
    with EventLoop() as serving:
        runner, url = serving.run(serve(LLMServer(plan)), timeout_s=10)
        try:
            return run(OpenAICompatibleLLM(url, "test"), directory, *records)
        finally:
            serving.run(runner.cleanup(), timeout_s=10)


def deltas(topics: MemoryTopics) -> dict[str, list[TextDelta]]:
    """By call, in the order in which they were written."""
    calls: dict[str, list[TextDelta]] = {}
    for payload in topics.on("results.delta"):
        delta = TextDelta.model_validate(payload)
        calls.setdefault(delta.call_id, []).append(delta)
    return calls


def result(topics: MemoryTopics) -> ResultCompleted:
    (payload,) = topics.on("results.completed")
    return ResultCompleted.model_validate(payload)


def text_of(call: Sequence[TextDelta]) -> str:
    return "".join(delta.text for delta in call)


def test_the_deltas_of_a_call_are_its_result_told_as_it_is_written(tmp_path: Path) -> None:
    pieces = [f"word {n} " for n in range(100)]
    topics = run(Writer(pieces, 0.005), tmp_path, asked(callback_url="https://example.org/hook"))
    ((call_id, call),) = deltas(topics).items()
    assert [delta.number for delta in call] == list(range(len(call)))
    assert text_of(call) == result(topics).text
    assert call[0].text == pieces[0]  # at once
    assert 2 < len(call) < 15  # half a second and more
    assert [delta.last for delta in call] == [False] * (len(call) - 1) + [True]
    assert result(topics).call_id == call_id
    assert result(topics).callback_url == "https://example.org/hook"
    assert {delta.tenant for delta in call} == {"acme"}
    order = [item.topic for item in topics.written if item.topic in {"results.delta", "results.completed"}]
    assert order[-1] == "results.completed"


def test_a_call_that_was_cut_is_told_anew_from_its_beginning(tmp_path: Path) -> None:
    plan = Plan(failures_before_success=1, first_fault="cut")
    topics = run_on_a_server(plan, tmp_path, asked())
    cut, whole = deltas(topics).values()
    assert (cut[0].number, cut[0].attempt, cut[-1].last) == (0, 1, False)
    assert [(delta.number, delta.attempt) for delta in whole] == [(n, 2) for n in range(len(whole))]
    assert whole[-1].last
    assert text_of(whole) == result(topics).text == plan.answer
    assert whole[0].call_id == result(topics).call_id


def test_an_answer_that_comes_in_one_piece_is_one_delta(tmp_path: Path) -> None:
    topics = run_on_a_server(Plan(), tmp_path, asked(prompt="FAULT:whole"))
    (call,) = deltas(topics).values()
    assert text_of(call) == Plan.answer
    assert call[-1].last


def test_an_answer_from_the_ledger_is_not_told_again(tmp_path: Path) -> None:
    first = run(Writer(["An ", "answer"]), tmp_path, asked())
    again = run(Writer(["Another"]), tmp_path, asked(offset=1))
    assert result(again) == result(first)
    assert deltas(again) == {}


def test_a_call_that_only_asks_for_a_tool_tells_nothing(tmp_path: Path) -> None:
    tool = Tool(name="look", description="Looks.", parameters={})
    topics = run_on_a_server(Plan(), tmp_path, asked(prompt="TOOL:look", tools=[tool.model_dump()]))
    assert topics.on("tools.requested")
    assert deltas(topics) == {}  # all that it says is the wish for a tool


class Stalled:
    """A flow that takes nothing up."""

    def __init__(self) -> None:
        self.said: list[TextDelta] = []
        request = RequestSubmitted(job_id="j", prompt="Why?")
        envelope = Envelope(job_of(request), request, record(request), utc_now())
        self.pending = Pending(1, "j", envelope, say=self._say)

    def _say(self, event: Event) -> Ready:
        assert isinstance(event, TextDelta)
        self.said.append(event)
        return Ready("j", event)


def test_a_flow_that_takes_nothing_up_is_told_no_more_until_the_end() -> None:
    flow = Stalled()
    pieces = [f"{n} " for n in range(40)]

    async def write() -> None:
        with Narration(flow.pending) as narration:
            for piece in pieces:
                narration.add(piece)
                await asyncio.sleep(0.01)
            assert len(flow.said) == 1
            narration.end("".join(pieces))

    asyncio.run(write())
    assert text_of(flow.said) == "".join(pieces)
    assert [delta.last for delta in flow.said] == [False, True]


def test_no_delta_is_larger_than_its_topic_takes() -> None:
    flow = Stalled()
    text = "x" * (2 * DELTA_MAX_CHARS + 1)

    async def write() -> None:
        with Narration(flow.pending) as narration:
            narration.add(text)
            narration.end(text)

    asyncio.run(write())
    assert [len(delta.text) for delta in flow.said] == [DELTA_MAX_CHARS, DELTA_MAX_CHARS, 1, 0]
    assert [delta.last for delta in flow.said] == [False, False, False, True]
    assert text_of(flow.said) == text


def test_nothing_is_told_of_a_call_after_it_has_failed() -> None:
    flow = Stalled()

    async def write() -> None:
        with suppress(TimeoutError), Narration(flow.pending) as narration:
            narration.add("first")
            narration.add("second")
            await asyncio.wait_for(asyncio.Event().wait(), timeout=0.01)
        await asyncio.sleep(2 * INTERVAL_S)

    asyncio.run(write())
    assert text_of(flow.said) == "first"


def test_after_a_crash_in_the_middle_of_an_answer_it_is_told_anew_by_another_call(tmp_path: Path) -> None:
    installation, model = Installation(tmp_path), Model()
    with installation.running(model) as process:
        process.ask()
        wait_for("the first word", lambda: process.topics.on("results.delta"))
        (torn,) = deltas(process.topics).values()
    model.may_end = True
    with installation.running(model) as process:  # its message is read again
        process.ask()
        wait_for("the answer", process.results)
    ((call_id, whole),) = deltas(process.topics).items()
    assert call_id != torn[0].call_id
    assert (torn[0].number, torn[-1].last, whole[0].number, whole[-1].last) == (0, False, 0, True)
    assert text_of(whole) == result(process.topics).text
    assert result(process.topics).call_id == call_id
