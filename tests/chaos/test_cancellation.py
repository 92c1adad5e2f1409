"""Cancelled jobs on Apache Kafka: with the command, in the middle of a call, and across a kill."""

import json
import signal
from uuid import uuid4

import pytest

from schemas.budgets import BudgetChanged, WindowLimit
from tests.chaos.parts import ModelServer, Scene
from tests.chaos.test_admission import ask, on, say, states
from tests.headrace_process import Payload, headrace
from tests.kafka.client import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def budget_for_one_call_at_a_time(scene: Scene) -> str:
    """Of a tenant who can reserve no second call while the first one is not settled; its name."""
    tenant = f"t-{uuid4().hex[:6]}"
    say(scene, BudgetChanged.model_validate({"tenant": tenant, "windows": (WindowLimit(seconds=86_400, tokens=1500),)}))
    return tenant


def shown(scene: Scene, job_id: str) -> Payload:
    done = headrace("jobs", "show", job_id, "--json", "--bootstrap", scene.bootstrap)
    assert done.returncode == 0, done.stderr
    story: Payload = json.loads(done.stdout)
    return story


def test_a_call_is_cancelled_by_command_and_its_budget_has_room_again(scene: Scene) -> None:
    tenant = budget_for_one_call_at_a_time(scene)
    job_id, after = (f"{scene.prefix}-{n}" for n in range(2))
    cancel = ("jobs", "cancel", job_id, "--reason", "not needed", "--bootstrap", scene.bootstrap)
    with ModelServer(scene.directory / "calls", latency_s=(120.0, 120.0)) as llm, scene.flows(llm, "usage") as flows:
        flows.running()
        refused = headrace(*cancel)
        assert (refused.returncode, "knows a job" in refused.stderr) == (1, True)
        ask(scene, job_id, tenant=tenant, max_tokens=1300)
        wait_for("the call", lambda: llm.calls().get(job_id))
        done = headrace(*cancel)
        assert done.returncode == 0, done.stderr
        wait_for("its end", lambda: "cancelled" in states(scene, job_id), 10.0)
        wait_for("the connection to close", lambda: llm.calls()[job_id][0].outcome == "closed by the client", 5.0)
        (used,) = wait_for("its settlement", lambda: on(scene, "usage.tokens", job_id=job_id))
        llm.put("plan", latency_s=[0.0, 0.0])
        ask(scene, after, tenant=tenant, max_tokens=1300)
        scene.wait_for_results([after])
        again = headrace(*cancel)
        assert flows.terminate() == 0
    assert (used["estimated"], used["model"], int(str(used["prompt_tokens"])) > 0) == (True, "test", True)
    assert (again.returncode, again.stderr.strip()) == (1, f"headrace: job {job_id} has ended already: it is cancelled")
    story = shown(scene, job_id)
    assert (story["standing"], story["user_sees"]) == ("cancelled", "Your request was cancelled.")
    assert "not needed" in str(story["where"])
    assert scene.letters() == []
    assert job_id not in scene.results()


def test_a_job_that_is_cancelled_while_its_flow_is_dead_makes_no_second_call(scene: Scene) -> None:
    tenant = budget_for_one_call_at_a_time(scene)
    job_id, after = (f"{scene.prefix}-{n}" for n in range(2))
    with ModelServer(scene.directory / "calls", latency_s=(120.0, 120.0)) as llm:
        with scene.flows(llm) as flows:
            flows.running()
            ask(scene, job_id, tenant=tenant, max_tokens=1300)
            wait_for("the call", lambda: llm.calls().get(job_id))
            flows.send(signal.SIGKILL)
            flows.ended()
        done = headrace("jobs", "cancel", job_id, "--bootstrap", scene.bootstrap)
        assert done.returncode == 0, done.stderr
        llm.put("plan", latency_s=[0.0, 0.0])
        with scene.flows(llm) as flows:
            flows.running()
            wait_for("its end", lambda: "cancelled" in states(scene, job_id), 30.0)
            ask(scene, after, tenant=tenant, max_tokens=1300)
            scene.wait_for_results([after])
            ask(scene, job_id, tenant=tenant, max_tokens=1300)
            wait_for("the end of the repeat", lambda: states(scene, job_id).count("cancelled") > 1, 30.0)
            assert flows.terminate() == 0
        assert len(llm.calls()[job_id]) == 1
    assert job_id not in scene.results()
    assert scene.letters() == []
