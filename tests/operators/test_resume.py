"""Jobs that wait for tools: they go on once, whatever comes in whatever order."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from connectors.kafka.port import Topics
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.produce import produce
from operators.resume import NO_ANSWER, NOTHING, resume, resumed
from operators.runtime import Runtime
from schemas.errors import Poison
from schemas.event import Event
from schemas.requests import RequestSubmitted, Tool
from schemas.results import TokenCount
from schemas.tools import ToolCompleted, ToolRequested
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
SOON = datetime.now(UTC) + timedelta(hours=1)


def asked(job_id: str = "j", call_id: str = "c", *, until: datetime = SOON, prompt: str = "Why?") -> ToolRequested:
    return ToolRequested(
        job_id=job_id,
        call_id=call_id,
        tool="search",
        arguments='{"query": "x"}',
        depth=1,
        model="m",
        usage=TokenCount(prompt_tokens=1, completion_tokens=1),
        said="Let me look.",
        request=RequestSubmitted(job_id=job_id, prompt=prompt, depth=1, tools=(Tool(name="search"),)),
        answer_until=until,
    )


def answer(job_id: str = "j", call_id: str = "c", content: str = "found") -> ToolCompleted:
    return ToolCompleted(job_id=job_id, call_id=call_id, tool="search", content=content)


def run(runtime_on: MakeRuntime, *events: Event) -> MemoryTopics:
    topics = MemoryTopics([record(event, offset=n) for n, event in enumerate(events)])
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    calls = consume("asked", flow, ToolRequested, runtime)
    answers = consume("answered", flow, ToolCompleted, runtime)
    gone_on = resume("resume", calls.oks, answers.oks, runtime)
    produce("passed", gone_on.oks, RequestSubmitted, runtime)
    dead_letter("dlq", calls.errs, answers.errs, gone_on.errs, runtime=runtime)
    run_main(flow)
    return topics


def conversations(topics: MemoryTopics) -> list[list[str]]:
    requests = [RequestSubmitted.model_validate(each) for each in topics.on("requests.submitted")]
    return [[f"{turn.role}: {turn.content}" for turn in request.turns] for request in requests]


def test_a_job_goes_on_with_the_whole_conversation(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, asked(), answer())
    assert conversations(topics) == [["user: Why?", "assistant: Let me look.", "tool: found"]]
    (request,) = (RequestSubmitted.model_validate(each) for each in topics.on("requests.submitted"))
    assert (request.job_id, request.depth) == ("j", 1)
    assert request.turns[1].tool_call is not None
    assert request.turns[1].tool_call.call_id == request.turns[2].tool_call_id == "c"


def test_repeated_calls_and_answers_resume_it_once(runtime_on: MakeRuntime) -> None:
    assert len(conversations(run(runtime_on, asked(), asked(), answer(), answer(content="again"), asked()))) == 1


def test_an_answer_to_another_jobs_call_or_to_none_changes_nothing(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, asked(), answer(job_id="thief"), answer(call_id="unheard of"))
    assert conversations(topics) == []
    assert topics.dead_letters() == []


def test_a_tool_that_does_not_answer_in_time_is_told_to_the_model(runtime_on: MakeRuntime) -> None:
    late = asked(until=datetime.now(UTC) - timedelta(seconds=1))
    topics = run(runtime_on, late, *(asked(job_id=f"j{n}", call_id=f"c{n}") for n in range(3)))
    assert conversations(topics) == [["user: Why?", "assistant: Let me look.", f"tool: {NO_ANSWER}"]]


def test_a_strange_time_limit_harms_nobody(runtime_on: MakeRuntime) -> None:
    strange = asked(job_id="s", call_id="s").model_dump(mode="json") | {"answer_until": "9999-12-31T23:59:59-14:00"}
    topics = run(runtime_on, ToolRequested.model_validate(strange), asked(), answer())
    assert len(conversations(topics)) == 1


def test_an_answer_of_nothing_is_an_answer() -> None:
    assert resumed(asked(), "").turns[-1].content == NOTHING


def test_an_answer_that_makes_the_conversation_too_long_ends_the_job_with_a_reason(runtime_on: MakeRuntime) -> None:
    with pytest.raises(Poison, match="does not fit"):
        resumed(asked(prompt="x" * 60_000), "y" * 50_000)
    topics = run(runtime_on, asked(prompt="x" * 60_000), answer(content="y" * 50_000))
    (letter,) = topics.dead_letters()
    assert letter.topic == "tools.requested"
    assert letter.ends_job
