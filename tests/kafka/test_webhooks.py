"""Callbacks on Apache Kafka as a team would have them: `headrace run webhooks`, killed, and a receiver of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.headrace_process import Payload, PlainClient, RunningFlows, headrace
from tests.kafka.apache_kafka import ApacheKafka
from tests.webhook_receiver import SECRET, Receiver, answering, in_turn, receiving, taken

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def result(tenant: str, url: str) -> Payload:
    return {
        "job_id": uuid4().hex,
        "tenant": tenant,
        "kind": "answer",
        "text": "Six.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "callback_url": url,
        "model": "m",
        "timings": {"queued_s": 0, "retrieve_s": 0, "infer_s": 0},
    }


def test_callbacks_survive_kill_9_and_are_redriven(
    client: PlainClient, kafka: ApacheKafka, receiver: Receiver, tmp_path: Path
) -> None:
    tenant = f"t{uuid4().hex[:12]}"
    variables = {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "HEADRACE_DATA_DIR": str(tmp_path / "data"),
        "HEADRACE_GROUP_PREFIX": f"test-{uuid4().hex[:8]}",
        "HEADRACE_WEBHOOK_SECRETS": json.dumps({tenant: SECRET}),
        "HEADRACE_WEBHOOK_PRIVATE": "true",
    }
    receiver.answers = {"/flaky": in_turn(answering(503), taken), "/gone": answering(410)}
    ends = {path: result(tenant, receiver.url(path, "127.0.0.1")) for path in ("/good", "/flaky", "/gone")}
    dead: Payload = {
        "job_id": uuid4().hex,
        "tenant": tenant,
        "state": "dead_lettered",
        "step": "answer.infer",
        "callback_url": receiver.url("/dead", "127.0.0.1"),
        "detail": "no model",
    }
    log = tmp_path / "log"
    with RunningFlows("webhooks", log=log, **variables) as flows:
        for payload in ends.values():
            client.send("results.completed", payload, key=str(payload["job_id"]))
        client.send("jobs.status", dead, key=str(dead["job_id"]))
        for path in (*ends, "/dead"):
            receiver.wait_for(1, path)
        flows.kill()
    with RunningFlows("webhooks", log=log, **variables) as flows:
        receiver.wait_for(2, "/flaky")
        gone = client.read_until("callbacks.deferred.dlq", lambda found: len(found) >= 1)[0]
        receiver.answers["/gone"] = taken
        before = len(receiver.to("/gone"))
        redriven = headrace("dlq", "redrive", "--tenant", tenant, "--error-class", "poison", "--json", **variables)
        assert redriven.returncode == 0, redriven.stderr
        receiver.wait_for(before + 1, "/gone")
        assert flows.terminate() == 0, log.read_text()
    for path, payload in (*ends.items(), ("/dead", dead)):
        posts = receiver.to(path)
        assert len({posted.webhook_id for posted in posts}) == 1, path
        assert {posted.verified()["data"]["job_id"] for posted in posts} == {payload["job_id"]}
    assert (gone["step"], gone["ends_job"], gone["job_id"]) == ("webhooks.deliver", False, ends["/gone"]["job_id"])
    statuses = client.read_until("jobs.status", lambda found: len(found) >= 1)
    assert [status["job_id"] for status in statuses if status["tenant"] == tenant] == [dead["job_id"]]
    assert SECRET not in log.read_text()
