"""The OpenAI-compatible connector against a server that fails as real ones do."""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.llm.openai import OpenAICompatibleLLM, ServerSentEvents
from connectors.llm.port import Completion, Message, OfferedTool, Passage, Prompt, WantedTool
from schemas.errors import Bill, Fatal, HeadraceError, Poison, Retryable
from tests.certificates import Authority
from tests.llm_server import LLMServer, Plan, serve

R = TypeVar("R")

PROMPT = Prompt(
    job_id="job-1",
    messages=(Message("user", "How long is the race?"),),
    passages=(Passage("It is 310 metres long.", "race.md"), Passage("Two metres deep.", None)),
    max_tokens=50,
)


def asking(fault: str) -> Prompt:
    return replace(PROMPT, messages=(Message("user", f"a secret question FAULT:{fault}"),))


def with_server(use: Callable[[OpenAICompatibleLLM, LLMServer], Awaitable[R]], plan: Plan | None = None) -> R:
    async def run() -> R:
        server = LLMServer(plan or Plan())
        runner, url = await serve(server)
        llm = OpenAICompatibleLLM(url, "test", api_key="key", idle_timeout_s=5.0)
        try:
            return await use(llm, server)
        finally:
            await llm.close()
            await runner.cleanup()

    return asyncio.run(run())


async def collect(llm: OpenAICompatibleLLM, prompt: Prompt) -> tuple[list[str], Completion]:
    deltas: list[str] = []
    async for part in llm.stream(prompt):
        if isinstance(part, Completion):
            return deltas, part
        deltas.append(part.text)
    raise AssertionError("no completion")


def failure_of(fault: str, plan: Plan | None = None) -> HeadraceError:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> HeadraceError:
        del server
        with pytest.raises(HeadraceError) as failed:
            await collect(llm, asking(fault))
        return failed.value

    return with_server(use, plan)


def test_deltas_add_up_to_the_completion_with_usage_and_citations() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        deltas, completion = await collect(llm, PROMPT)
        assert len(deltas) > 5
        assert "".join(deltas) == completion.text == server.plan.answer
        assert completion.cited == (0, 1)
        assert (completion.prompt_tokens, completion.completion_tokens, completion.usage_estimated) == (11, 7, False)
        assert (completion.model, completion.finish_reason) == ("test-1", "stop")

    with_server(use)


def test_the_endpoint_gets_passages_limit_key_and_idempotency_key() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        await collect(llm, PROMPT)
        (call,) = server.calls
        assert call.job_id == "job-1"
        messages = call.body["messages"]
        assert isinstance(messages, list)
        assert "[1] race.md\nIt is 310 metres long." in messages[0]["content"]
        assert messages[-1] == {"role": "user", "content": "How long is the race?"}
        assert call.body["max_tokens"] == 50

    with_server(use)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400", Poison),
        ("422", Poison),
        ("413", Poison),
        ("401", Fatal),
        ("403", Fatal),
        ("404", Fatal),
        ("408", Retryable),
        ("429", Retryable),
        ("500", Retryable),
        ("503", Retryable),
        ("cut", Retryable),
        ("malformed", Retryable),
        ("not-utf8", Retryable),
        ("error", Retryable),
    ],
)
def test_every_failure_has_its_class_and_shows_nothing_of_the_prompt(fault: str, kind: type[HeadraceError]) -> None:
    error = failure_of(fault)
    assert type(error) is kind
    assert "secret" not in str(error)
    if fault.isdecimal():
        assert fault in str(error)
        assert f"fault_{fault}" in str(error)


def test_retry_after_is_handed_on() -> None:
    error = failure_of("429", Plan(retry_after="17"))
    assert isinstance(error, Retryable)
    assert error.retry_after_s == 17.0


def test_a_server_that_does_not_stream_is_understood() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        deltas, completion = await collect(llm, asking("whole"))
        assert "".join(deltas) == completion.text == server.plan.answer

    with_server(use)


@pytest.mark.parametrize("fault", ["no-usage", "wrong-usage", "absurd-usage"])
def test_tokens_are_estimated_and_marked_so_where_none_are_reported_or_wrong_ones(fault: str) -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        _, completion = await collect(llm, asking(fault))
        assert completion.usage_estimated
        assert completion.completion_tokens == pytest.approx(len(server.plan.answer) / 4, abs=1)

    with_server(use)


SEARCH = OfferedTool("search", "Finds passages.", {"type": "object", "properties": {"query": {"type": "string"}}})


def wanting(mark: str) -> Prompt:
    return replace(PROMPT, messages=(Message("user", f"How long is it? {mark}"),), tools=(SEARCH,))


def test_tools_are_offered_as_the_api_has_them_one_call_at_a_time_and_not_at_all_where_there_are_none() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        await collect(llm, PROMPT)
        await collect(llm, replace(PROMPT, tools=(SEARCH,)))
        without, with_tools = (call.body for call in server.calls)
        assert without.keys().isdisjoint({"tools", "parallel_tool_calls"})
        function = {"name": "search", "description": "Finds passages.", "parameters": dict(SEARCH.parameters)}
        assert with_tools["tools"] == [{"type": "function", "function": function}]
        assert with_tools["parallel_tool_calls"] is False

    with_server(use)


def answer_to(mark: str) -> Completion:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> Completion:
        del server
        _, completion = await collect(llm, wanting(mark))
        return completion

    return with_server(use)


@pytest.mark.parametrize(
    "mark",
    [
        "TOOL:search",
        "TOOL:search FAULT:whole",
        "TOOL:search FAULT:index-1",
        "TOOL:search FAULT:renamed",
        "TOOLS2:search",
        "TOOLS2:search FAULT:whole",
        "TOOLS2:search FAULT:index-0",
    ],
)
def test_the_first_call_of_a_tool_is_put_together_from_its_pieces_and_its_tokens_are_counted(mark: str) -> None:
    completion = answer_to(mark)
    arguments = json.dumps({"query": f"How long is it? {mark}"[:50]})
    assert completion.wants == WantedTool("call-job-1-1-0", "search", arguments)
    assert (completion.text, completion.finish_reason) == ("", "tool")
    assert (completion.prompt_tokens, completion.completion_tokens, completion.usage_estimated) == (11, 7, False)


def test_tokens_of_a_call_are_estimated_from_its_arguments_where_none_are_reported() -> None:
    completion = answer_to("TOOL:search FAULT:no-usage")
    assert completion.wants is not None
    assert completion.usage_estimated
    assert completion.completion_tokens == pytest.approx(len(completion.wants.arguments) / 4, abs=1)
    read = "How long is it? TOOL:search FAULT:no-usage It is 310 metres long. Two metres deep."
    assert completion.prompt_tokens > (len(read) + len(json.dumps(dict(SEARCH.parameters)))) / 4


def test_a_call_without_arguments_has_none_as_json() -> None:
    completion = answer_to("TOOL:search FAULT:bare")
    assert completion.wants == WantedTool("call-job-1-1-0", "search", "{}")


def test_a_call_cut_off_by_the_token_limit_is_no_call() -> None:
    completion = answer_to("TOOL:search FAULT:length")
    assert completion.wants is None
    assert completion.finish_reason == "length"
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 7)


@pytest.mark.parametrize("fault", ["nameless", "callless", "cut", "malformed"])
def test_half_a_call_or_one_of_no_tool_is_retryable_and_shows_nothing_of_the_prompt(fault: str) -> None:
    with pytest.raises(Retryable) as failed:
        answer_to(f"a secret TOOL:search FAULT:{fault}")
    assert "secret" not in str(failed.value)


def test_every_call_has_an_id_of_its_own() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        del server
        answers = [await collect(llm, wanting("TOOL:search")) for _ in range(3)]
        assert len({completion.wants.call_id for _, completion in answers if completion.wants is not None}) == 3

    with_server(use)


def test_a_call_that_the_tool_has_answered_leads_to_an_answer_that_knows_what_it_said() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        asked = wanting("TOOL:search")
        _, first = await collect(llm, asked)
        assert first.wants is not None
        turns = (
            *asked.messages,
            Message("assistant", first.text, first.wants),
            Message("tool", "310 m, says TOOL:search", answers=first.wants.call_id),
        )
        _, second = await collect(llm, replace(asked, messages=turns))
        assert second.wants is None
        assert second.finish_reason == "stop"
        assert "310 m, says TOOL:search" in second.text
        messages = server.calls[1].body["messages"]
        assert isinstance(messages, list)
        assert messages[-2]["tool_calls"][0]["id"] == messages[-1]["tool_call_id"] == first.wants.call_id

    with_server(use)


def test_a_conversation_with_a_call_and_its_answer_is_sent_as_the_api_has_it_and_goes_on() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        wanted = WantedTool("c-1", "search", '{"query": "x"}')
        turns = (
            Message("user", "How long?"),
            Message("assistant", "", wanted),
            Message("tool", "310 m", answers="c-1"),
        )
        _, completion = await collect(llm, replace(PROMPT, messages=turns, tools=(SEARCH,)))
        assert "310 m" in completion.text
        assert completion.wants is None
        messages = server.calls[0].body["messages"]
        assert isinstance(messages, list)
        function = {"name": "search", "arguments": '{"query": "x"}'}
        call = {"id": "c-1", "type": "function", "function": function}
        assert messages[-2] == {"role": "assistant", "content": "", "tool_calls": [call]}
        assert messages[-1] == {"role": "tool", "content": "310 m", "tool_call_id": "c-1"}

    with_server(use)


def test_cancelling_the_call_closes_the_connection() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        call = asyncio.create_task(collect(llm, asking("hang")))
        await asyncio.wait_for(server.called.wait(), 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.closed_early.wait(), 10)

    with_server(use)


def test_a_silent_server_is_retryable() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        del llm
        runner, url = await serve(server)
        quick = OpenAICompatibleLLM(url, "test", idle_timeout_s=0.2)
        with pytest.raises(Retryable, match="fell silent"):
            await collect(quick, asking("hang"))
        await quick.close()
        await runner.cleanup()

    with_server(use)


def test_a_refused_connection_is_retryable_and_names_the_endpoint() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def use() -> None:
        llm = OpenAICompatibleLLM(f"http://127.0.0.1:{port}/v1", "test")
        with pytest.raises(Retryable, match=str(port)):
            await collect(llm, PROMPT)
        await llm.close()

    asyncio.run(use())


def test_a_hundred_calls_run_at_once() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        prompts = [replace(PROMPT, job_id=f"job-{n}") for n in range(100)]
        await asyncio.gather(*(collect(llm, prompt) for prompt in prompts))
        began = sorted(call.began_at for call in server.calls)
        ended = sorted(call.ended_at or 0.0 for call in server.calls)
        assert began[-1] < ended[0]

    with_server(use, Plan(latency_s=(1.0, 1.0)))


STREAM = 'data: {"a": "é"}\r\n\r\n: comment\n\nevent: x\ndata:first\ndata: second\n\ndata: [DONE]\n\n'.encode()


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    parser = ServerSentEvents()
    pieces = [STREAM[begin:end] for begin, end in pairwise([0, *sorted(cuts), len(STREAM)])]
    assert [data for piece in pieces for data in parser.feed(piece)] == ['{"a": "é"}', "first\nsecond", "[DONE]"]


def test_a_line_without_end_is_refused_before_memory_is() -> None:
    parser = ServerSentEvents()
    for _ in range(10):
        parser.feed(b"x" * 100_000)
    with pytest.raises(Retryable, match="line of more than"):
        parser.feed(b"x" * 100_000)


def test_a_call_that_names_no_tool_fails_with_its_bill() -> None:
    with pytest.raises(Retryable) as failed:
        answer_to("TOOL:search FAULT:nameless")
    assert failed.value.bill == Bill("test-1", 11, 7)


def test_a_number_of_thousands_of_digits_in_brackets_cites_nothing_and_loses_no_answer() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        _, completion = await collect(llm, PROMPT)
        assert (completion.cited, completion.text) == ((1,), server.plan.answer)

    with_server(use, Plan(answer="See [" + "1" * 5000 + "] and [2]."))


def test_attempts_at_a_call_share_their_idempotency_key_and_the_next_turn_or_a_redrive_has_another() -> None:
    async def use(llm: OpenAICompatibleLLM, server: LLMServer) -> None:
        asks = Message("assistant", "", WantedTool("c", "search", "{}"))
        answered = replace(PROMPT, messages=(*PROMPT.messages, asks, Message("tool", "310", answers="c")))
        for prompt in (PROMPT, PROMPT, answered, replace(PROMPT, redrives=1)):
            await collect(llm, prompt)
        first, again, turn, redriven = server.keys
        assert first == again
        assert len({first, turn, redriven}) == 3
        assert {call.job_id for call in server.calls} == {PROMPT.job_id}

    with_server(use)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_is_called_over_tls_only_if_it_is_trusted(tmp_path: Path, *, trusted: bool) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")

    async def run() -> list[str]:
        server = LLMServer(Plan())
        certificate, key = authority.sign("model")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        runner, url = await serve(server, tls=tls)
        ca = authority.ca if trusted else stranger.ca
        llm = OpenAICompatibleLLM(url, "test", api_key="key", ca=ca)
        try:
            return (await collect(llm, PROMPT))[0]
        finally:
            await llm.close()
            await runner.cleanup()

    if trusted:
        assert asyncio.run(run())
    else:
        with pytest.raises(Fatal, match="HEADRACE_LLM_CA"):
            asyncio.run(run())


def test_a_file_without_certificates_names_the_setting() -> None:
    with pytest.raises(Fatal, match="HEADRACE_LLM_CA"):
        OpenAICompatibleLLM("https://127.0.0.1:1/v1", "test", ca=Path(__file__))
