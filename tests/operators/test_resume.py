"""Jobs that wait for tools: they go on once, whatever comes in whatever order."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from connectors.kafka.dead_letters import repeated
from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from connectors.kafka.recovery import RecoveryDirectory
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.outcome import attempt
from operators.produce import produce
from operators.resume import NO_ANSWER, NOTHING, ResumePolicy, resume, resumed
from operators.runtime import Runtime
from schemas.dead_letter import REDRIVE_HEADER, DeadLetter
from schemas.errors import Poison
from schemas.event import Event, utc_now
from schemas.requests import RequestSubmitted, Tool
from schemas.results import TokenCount
from schemas.tools import ToolCompleted, ToolRequested
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
NOW = datetime.now(UTC)
SOON = NOW + timedelta(hours=1)


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


def answer(job_id: str = "j", call_id: str = "c", content: str = "found", *, at: datetime = NOW) -> ToolCompleted:
    return ToolCompleted(job_id=job_id, call_id=call_id, tool="search", content=content, completed_at=at)


def passing(request: RequestSubmitted) -> RequestSubmitted:
    return request


def failing(_request: RequestSubmitted) -> RequestSubmitted:
    raise Poison("400 from the model")


def run(
    runtime_on: MakeRuntime,
    *events: Event | Record,
    directory: RecoveryDirectory | None = None,
    turn: Callable[[RequestSubmitted], RequestSubmitted] = passing,
    grace_s: float = 0.0,
    clock: Callable[[], datetime] = utc_now,
) -> MemoryTopics:
    records = [event if isinstance(event, Record) else record(event, offset=n) for n, event in enumerate(events)]
    topics = MemoryTopics(records)
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    calls = consume("asked", flow, ToolRequested, runtime)
    answers = consume("answered", flow, ToolCompleted, runtime)
    gone_on = resume("resume", calls.oks, answers.oks, runtime, ResumePolicy(grace_s), clock)
    turned = attempt("turn", gone_on.oks, turn)
    produce("passed", turned.oks, RequestSubmitted, runtime)
    dead_letter("dlq", calls.errs, answers.errs, gone_on.errs, turned.errs, runtime=runtime)
    run_main(flow, recovery_config=None if directory is None else directory.config(), epoch_interval=timedelta(0))
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


def test_an_answer_in_time_counts_though_the_flow_was_down_until_long_after(
    runtime_on: MakeRuntime, tmp_path: Path
) -> None:
    """And though what stands before it on its topic must be read first."""
    began, until = NOW - timedelta(hours=1), NOW - timedelta(minutes=55)
    events: list[Event] = [asked(until=until)]
    with RecoveryDirectory(tmp_path / "answer") as directory:
        run(runtime_on, *events, directory=directory, clock=lambda: began)
        events += [answer(call_id=f"another {n}") for n in range(20)]
        events += [answer(at=until - timedelta(seconds=1))]
        topics = run(runtime_on, *events, directory=directory, grace_s=60.0)
    assert conversations(topics) == [["user: Why?", "assistant: Let me look.", "tool: found"]]


def test_an_answer_that_does_not_say_when_it_was_completed_was_when_it_was_produced(runtime_on: MakeRuntime) -> None:
    call = asked(until=NOW - timedelta(minutes=1))
    silent = answer().model_dump_json(exclude={"completed_at"}).encode()
    produced = replace(record(answer()), value=silent, timestamp=NOW - timedelta(minutes=2))
    assert len(conversations(run(runtime_on, call, produced, grace_s=60.0))) == 1


def test_an_answer_before_its_call_waits_anew_after_a_long_outage(runtime_on: MakeRuntime, tmp_path: Path) -> None:
    events: list[Event] = [answer()]
    with RecoveryDirectory(tmp_path / "answer") as directory:
        run(runtime_on, *events, directory=directory, clock=lambda: NOW - timedelta(hours=1))
        events += [asked(job_id=f"j{n}", call_id=f"c{n}") for n in range(20)]
        topics = run(runtime_on, *events, asked(), directory=directory)
    assert len(conversations(topics)) == 1


def test_an_answer_completed_too_late_changes_nothing_though_the_call_is_still_open(
    runtime_on: MakeRuntime, tmp_path: Path
) -> None:
    events = [asked(until=NOW - timedelta(seconds=1)), answer()]
    with RecoveryDirectory(tmp_path / "answer") as directory:
        assert conversations(run(runtime_on, *events, directory=directory, grace_s=3600.0)) == []
        others = (asked(job_id=f"j{n}", call_id=f"c{n}") for n in range(3))
        topics = run(runtime_on, *events, *others, directory=directory)
    assert conversations(topics) == [["user: Why?", "assistant: Let me look.", f"tool: {NO_ANSWER}"]]


def redriven(letter: DeadLetter) -> Record:
    message = repeated(letter)
    return Record(message.topic, 0, 100, message.key, message.value, message.headers, NOW)


@pytest.mark.parametrize("answered", [True, False])
def test_a_redriven_turn_goes_on_with_what_the_tool_had_answered_however_late(
    runtime_on: MakeRuntime, tmp_path: Path, *, answered: bool
) -> None:
    """Else it would be another request under the job's id. What the tool answers to the redrive changes nothing."""
    until = NOW - timedelta(hours=1)
    before: list[Event | Record] = [asked(until=until)]
    before += [answer(at=until - timedelta(seconds=1))] if answered else [asked("k", f"k{n}") for n in range(3)]
    with RecoveryDirectory(tmp_path / "answer") as directory:
        for _ in range(2):  # a redriven turn that fails can be redriven, too
            topics = run(runtime_on, *before, directory=directory, turn=failing)
            (letter,) = topics.dead_letters()
            before += [redriven(letter)]
        topics = run(runtime_on, *before, answer(content="found otherwise"), directory=directory)
    told = "found" if answered else NO_ANSWER
    assert conversations(topics) == [["user: Why?", "assistant: Let me look.", f"tool: {told}"]]
    assert topics.dead_letters() == []


def test_a_call_redriven_for_its_tools_sake_still_waits_once(runtime_on: MakeRuntime) -> None:
    again = replace(record(asked(), offset=1), headers=((REDRIVE_HEADER, b"1"),))
    topics = run(runtime_on, asked(), again, *(answer(call_id=f"another {n}") for n in range(3)), answer())
    assert len(conversations(topics)) == 1
    assert topics.dead_letters() == []


def test_a_redriven_call_that_is_over_and_carries_no_answer_is_one_dead_letter(runtime_on: MakeRuntime) -> None:
    """Its tool's own dead letter, say. The job goes on, or has ended, without it."""
    again = replace(record(asked(), offset=1), headers=((REDRIVE_HEADER, b"1"),))
    topics = run(runtime_on, asked(), answer(), *(asked("k", f"k{n}") for n in range(3)), again)
    assert len(conversations(topics)) == 1
    (letter,) = topics.dead_letters()
    assert (letter.error_type, letter.ends_job) == ("Refused", False)


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
