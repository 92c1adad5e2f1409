"""Admission on Apache Kafka: budgets that hold under kills, repeats, reviews, and the loop through tools."""

import json
import signal
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import pytest

from connectors.kafka.record import OutgoingRecord, outgoing
from schemas.budgets import BudgetChanged, WindowLimit
from schemas.event import Event
from schemas.reviews import ReviewDecided
from tests.chaos.parts import REQUESTS, ModelServer, Scene
from tests.headrace_process import Payload, headrace
from tests.kafka.client import values, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def say(scene: Scene, event: Event) -> None:
    """Produce an event as a client of the product would."""
    record: OutgoingRecord = outgoing(event, step="test")
    scene.client.send(record.topic, record.value, key=record.key.decode())


def ask(scene: Scene, job_id: str, **fields: object) -> Payload:
    request: Payload = {"job_id": job_id, "kind": "generate", "prompt": "What is it?", "max_tokens": 100} | fields
    scene.client.send(REQUESTS, request, key=job_id)
    return request


def on(scene: Scene, topic: str, **fields: object) -> list[Payload]:
    found = [json.loads(value) for value in values(scene.bootstrap, topic)]
    return [each for each in found if fields.items() <= each.items()]


def states(scene: Scene, job_id: str) -> list[str]:
    return [str(each["state"]) for each in on(scene, "jobs.status", job_id=job_id)]


def used_in(scene: Scene, seconds: int, tenant: str) -> dict[int, int]:
    """Tokens used per window, each call counted once."""
    calls = {str(each["admission_id"]): each for each in on(scene, "usage.tokens", tenant=tenant)}
    windows: dict[int, int] = {}
    for each in calls.values():
        window = int(datetime.fromisoformat(str(each["used_at"])).timestamp()) // seconds
        tokens = int(str(each["prompt_tokens"])) + int(str(each["completion_tokens"]))
        windows[window] = windows.get(window, 0) + tokens
    return windows


def test_a_hundred_requests_at_once_and_kills_in_between_never_overspend_a_window(scene: Scene) -> None:
    """The model server bills up to 1,000 tokens a call, which is less than what such a request reserves."""
    tenant, window_s, limit = f"t-{uuid4().hex[:6]}", 2, 6000
    window = WindowLimit(seconds=window_s, tokens=limit)
    say(scene, BudgetChanged.model_validate({"tenant": tenant, "windows": (window,), "policy": "defer"}))
    jobs = [f"{scene.prefix}-{n}" for n in range(100)]
    with ModelServer(scene.directory / "calls", latency_s=(0.02, 0.2)) as llm:
        for kill in range(3):
            with scene.flows(llm, "usage") as flows:
                flows.running()
                for job_id in jobs if kill == 0 else ():
                    ask(scene, job_id, tenant=tenant, max_tokens=900)
                enough = (kill + 1) * 15
                wait_for("some answers", partial(answered_at_least, scene, enough))
                if kill < 2:
                    flows.send(signal.SIGKILL)
                    flows.ended()
                else:
                    results = scene.wait_for_results(jobs)
                    billed = sum(tokens_of(value) for found in results.values() for value in found)
                    wait_for("the windows add up", partial(windows_add_up, scene, tenant, 100, billed))
                    assert flows.terminate() == 0
    assert {job_id: len(found) for job_id, found in results.items()} == dict.fromkeys(jobs, 1)
    spent = used_in(scene, window_s, tenant)
    assert sum(spent.values()) == billed
    assert max(spent.values()) <= limit, spent
    assert max(spent.values()) > limit // 4, "the budget was never near its edge: this proves nothing"
    assert scene.letters() == []


def answered_at_least(scene: Scene, jobs: int) -> bool:
    return len(scene.results()) >= jobs


def windows_add_up(scene: Scene, tenant: str, calls: int, tokens: int) -> bool:
    """As `headrace usage` has it."""
    done = headrace("usage", tenant, "--window", "hour", "--json", "--bootstrap", scene.bootstrap)
    assert done.returncode == 0, done.stderr
    return bool(json.loads(done.stdout)["totals"] == {"calls": calls, "tokens": tokens})


def tokens_of(result: bytes) -> int:
    usage = json.loads(result)["usage"]
    return int(usage["prompt_tokens"]) + int(usage["completion_tokens"])


def test_a_budget_that_is_used_up_rejects_with_a_time_to_come_back_and_a_new_one_takes_effect_at_once(
    scene: Scene,
) -> None:
    tenant = f"t-{uuid4().hex[:6]}"
    poor = BudgetChanged.model_validate({"tenant": tenant, "windows": (WindowLimit(seconds=86_400, tokens=1500),)})
    say(scene, poor)
    first, second, third = (f"{scene.prefix}-{n}" for n in range(3))
    with ModelServer(scene.directory / "calls") as llm, scene.flows(llm) as flows:
        flows.running()
        ask(scene, first, tenant=tenant, max_tokens=1300)
        scene.wait_for_results([first])
        wait_for("the settlement", lambda: on(scene, "usage.tokens", tenant=tenant))
        ask(scene, second, tenant=tenant, max_tokens=1300)
        (letter,) = wait_for("the rejection", scene.letters)
        say(scene, poor.model_copy(update={"windows": (WindowLimit(seconds=86_400, tokens=100_000),)}))
        scene.client.send("budgets.config", {"tenant": tenant, "windows": [{"seconds": 60, "tokens": -1}]}, key=tenant)
        wait_for("the refused budget", lambda: on(scene, "budgets.config.dlq"))
        ask(scene, third, tenant=tenant, max_tokens=1300)
        scene.wait_for_results([third])
        assert flows.terminate() == 0
    assert letter["job_id"] == second
    assert letter["error_type"] == "OverBudget"
    assert letter["retryable"] is True
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert f"send it again after {tomorrow}T00:00:00+00:00" in str(letter["message"])
    (refused,) = on(scene, "budgets.config.dlq")
    assert "windows.0.tokens" in str(refused["message"])
    assert states(scene, second)[-1] == "dead_lettered"


def test_repeats_of_a_finished_job_get_its_answer_and_those_of_a_running_one_a_status_after_a_restart_too(
    scene: Scene,
) -> None:
    job_id = f"{scene.prefix}-a"
    with ModelServer(scene.directory / "calls", latency_s=(2.0, 2.0)) as llm:
        with scene.flows(llm) as flows:
            flows.running()
            ask(scene, job_id)
            wait_for("the call", lambda: llm.calls().get(job_id))
            ask(scene, job_id)
            wait_for(
                "the drop",
                lambda: [
                    each for each in on(scene, "jobs.status", job_id=job_id) if "repeat" in str(each.get("detail"))
                ],
            )
            scene.wait_for_results([job_id])
            assert flows.terminate() == 0
        with scene.flows(llm, HEADRACE_WORKERS="3") as flows:
            flows.running()
            ask(scene, job_id)
            wait_for("the answer again", lambda: len(on(scene, "results.completed", job_id=job_id)) >= 2)
            assert flows.terminate() == 0
        assert len(llm.calls()[job_id]) == 1
    first, *again = on(scene, "results.completed", job_id=job_id)
    assert all(each == first for each in again)


def test_what_a_guard_stopped_goes_on_once_when_approved_and_ends_when_rejected_after_a_kill_too(scene: Scene) -> None:
    approved, rejected = f"{scene.prefix}-yes", f"{scene.prefix}-no"
    with ModelServer(scene.directory / "calls") as llm:
        with scene.flows(llm, HEADRACE_GUARD_DEPTH="3") as flows:
            flows.running()
            for job_id in (approved, rejected):
                ask(scene, job_id, depth=3, parent_job_id=f"{job_id}-parent", root_job_id=f"{job_id}-root")
            wait_for("both reviews", lambda: len(on(scene, "reviews.requested")) == 2)
            wait_for("a snapshot after them", lambda: scene.has_no_lag("a"))
            flows.send(signal.SIGKILL)
            flows.ended()
        assert llm.calls() == {}
        reviews = {str(each["job_id"]): each for each in on(scene, "reviews.requested")}
        listed = by_a_person(scene, "list")
        assert "2 open" in listed
        assert "depth 4/3" in listed
        shown = by_a_person(scene, "show", str(reviews[approved]["review_id"])[:8], "--prompt")
        assert f"depth 0  {approved}-root" in shown
        assert "user: What is it?" in shown
        with scene.flows(llm, HEADRACE_GUARD_DEPTH="3") as flows:
            flows.running()
            for job_id, decision in ((approved, "approve"), (rejected, "reject")):
                review_id = str(reviews[job_id]["review_id"])[:8]
                by_a_person(scene, decision, review_id, "--note", "enough", "--reviewer", "ann")
            again = headrace("reviews", "approve", str(reviews[approved]["review_id"]), "--bootstrap", scene.bootstrap)
            assert (again.returncode, again.stdout) == (1, "")
            assert "is approved already" in again.stderr
            decide(scene, reviews[approved], "approve")  # as a client that does not look first
            scene.wait_for_results([approved])
            (letter,) = wait_for("the rejection", scene.letters)
            wait_for("the second decision", lambda: flows.logged("decision ignored: the job does not wait for it"))
            assert flows.terminate() == 0
        assert {job_id: len(calls) for job_id, calls in llm.calls().items()} == {approved: 1}
    assert "nothing waits" in by_a_person(scene, "list")
    review = reviews[approved]
    assert (review["limit"], review["value"], review["allowed"]) == ("depth", 4, 3)
    assert [each["job_id"] for each in review["ancestors"]] == [f"{approved}-root", f"{approved}-parent"]  # type: ignore[attr-defined]
    assert letter["job_id"] == rejected
    assert "rejected by ann: enough" in str(letter["message"])
    assert "awaiting_review" in states(scene, approved)
    assert states(scene, approved)[-1] == "completed"


def by_a_person(scene: Scene, *arguments: str) -> str:
    """`headrace reviews`: what it prints."""
    done = headrace("reviews", *arguments, "--bootstrap", scene.bootstrap)
    assert done.returncode == 0, done.stderr
    return done.stdout


def decide(scene: Scene, review: Mapping[str, object], decision: str) -> None:
    fields = {name: review[name] for name in ("job_id", "tenant", "review_id", "root_job_id")}
    say(scene, ReviewDecided.model_validate(fields | {"decision": decision, "note": "enough", "reviewer": "ann"}))


def test_a_model_that_always_wants_a_tool_is_stopped_by_the_guard_after_exactly_so_many_calls(scene: Scene) -> None:
    job_id = f"{scene.prefix}-loop"
    tool = {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}}
    with ModelServer(scene.directory / "calls") as llm:
        llm.put("plan", always_tool="search")
        with scene.flows(llm, "search", HEADRACE_GUARD_DEPTH="4") as flows:
            flows.running()
            ask(scene, job_id, tools=[tool])
            (review,) = wait_for("the review", lambda: on(scene, "reviews.requested"))
            calls = llm.calls()[job_id]
            assert len(calls) == 4
            llm.put("plan", always_tool="")
            decide(scene, review, "approve")
            scene.wait_for_results([job_id])
            assert flows.terminate() == 0
        assert len(llm.calls()[job_id]) == 5
    assert (review["job_id"], review["limit"]) == (job_id, "depth")
    assert len(on(scene, "tools.requested", job_id=job_id)) == 4
    assert len(on(scene, "tools.completed", job_id=job_id)) == 4
    assert states(scene, job_id).count("awaiting_tool") == 4
    assert scene.letters() == []


def turns_at_least(scene: Scene, turns: int) -> bool:
    return len(on(scene, "tools.requested")) >= turns


def test_a_job_with_tools_survives_a_kill_at_every_turn_and_pays_for_each_turn_once(scene: Scene) -> None:
    jobs = [f"{scene.prefix}-{n}" for n in range(6)]
    tool = {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}}
    with ModelServer(scene.directory / "calls", latency_s=(0.1, 0.3)) as llm:
        llm.put("plan", always_tool="search")
        for turns in (1, 2, 3):
            with scene.flows(llm, "search") as flows:
                flows.running()
                if turns == 1:
                    for job_id in jobs:
                        ask(scene, job_id, tools=[tool])
                wait_for(f"turn {turns}", partial(turns_at_least, scene, turns * len(jobs)))
                flows.send(signal.SIGKILL)
                flows.ended()
        llm.put("plan", always_tool="")
        with scene.flows(llm, "search") as flows:
            flows.running()
            results = scene.wait_for_results(jobs)
            assert flows.terminate() == 0
    assert {job_id: len(found) for job_id, found in results.items()} == dict.fromkeys(jobs, 1)
    for job_id in jobs:
        asked = on(scene, "tools.requested", job_id=job_id)
        depths = {each["depth"] for each in asked}
        assert len({each["call_id"] for each in asked}) == len(depths), "a turn was paid for twice"
    assert scene.letters() == []
