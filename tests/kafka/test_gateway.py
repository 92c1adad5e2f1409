"""The gateway on Apache Kafka: outages, durability, and an answer from the flow."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from connectors.kafka.topics import TopicSpec, create_topics
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.gateway.running import RunningGateway, until
from tests.headrace_process import RunningFlows
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = pytest.mark.kafka


@pytest.fixture
def topics(kafka: ApacheKafka) -> ApacheKafka:
    """A broker with all topics."""
    specs = [TopicSpec(topic.name, 2, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
    create_topics(kafka.bootstrap, specs)
    return kafka


def jobs_of(gateway: RunningGateway, path: str = "/v1/jobs?limit=500") -> set[str]:
    return {job["job_id"] for job in gateway.client.get(path).json()["jobs"]}


def test_while_kafka_is_out_it_refuses_at_once_shows_what_it_knows_and_comes_back_by_itself(
    topics: ApacheKafka, tmp_path: Path
) -> None:
    with RunningGateway(topics.bootstrap, tmp_path) as gateway:
        job_id = gateway.ready().ask(job_id=str(uuid4()))
        until(lambda: job_id in jobs_of(gateway))
        topics.stop()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 503)
            for _ in range(5):
                refused = gateway.post("/v1/requests", {"prompt": "?"})
                assert refused.status_code == 503
                assert refused.elapsed.total_seconds() < 1.0
                assert int(refused.headers["retry-after"]) > 0
            assert gateway.client.delete(f"/v1/jobs/{job_id}").status_code == 503
            assert gateway.client.post("/v1/documents", files={"file": ("a.txt", b"x")}).status_code == 503
            assert not [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
            assert gateway.client.get(f"/v1/jobs/{job_id}").json()["state"] == "accepted"
            assert job_id in jobs_of(gateway)
        finally:
            topics.start()
        until(lambda: gateway.client.get("/readyz").status_code == 200)
        later = gateway.ask(job_id=str(uuid4()))
        until(lambda: later in jobs_of(gateway))


def test_what_was_answered_with_202_is_there_whatever_happens_to_gateway_and_broker(
    topics: ApacheKafka, tmp_path: Path
) -> None:
    accepted: set[str] = set()
    with RunningGateway(topics.bootstrap, tmp_path / "one") as gateway:
        gateway.ready()
        for number in range(200):
            answer = gateway.post("/v1/requests", {"prompt": "?", "job_id": f"durable-{number}"})
            assert answer.status_code == 202
            accepted.add(answer.json()["job_id"])
        gateway.kill()
    topics.stop()
    topics.start()
    with RunningGateway(topics.bootstrap, tmp_path / "another") as gateway:  # with a read model of its own
        until(lambda: accepted <= jobs_of(gateway, "/v1/jobs?limit=500&kind=request"))


def test_whoever_waits_gets_the_answer_of_the_flow_and_its_story(topics: ApacheKafka, tmp_path: Path) -> None:
    variables = {"HEADRACE_DATA_DIR": str(tmp_path), "HEADRACE_KAFKA_BOOTSTRAP": topics.bootstrap}
    with (
        RunningFlows("ingest", "answer", log=tmp_path / "flows.log", **variables),
        RunningGateway(topics.bootstrap, tmp_path) as gateway,
    ):
        gateway.ready()
        manual = b"# Turbine T1\n\nThe oil filter of turbine T1 is changed every 400 operating hours.\n"
        headers = {"Prefer": "wait=60"}
        files = {"file": ("manual.md", manual)}
        indexed = gateway.client.post("/v1/documents", files=files, headers=headers, timeout=90)
        assert indexed.status_code == 200, indexed.text
        assert indexed.json()["document"]["chunks"] == 1
        asked = {"prompt": "How often is the oil filter of turbine T1 changed?"}
        answered = gateway.client.post("/v1/requests", json=asked, headers=headers, timeout=90).json()
        assert answered["state"] == "completed"
        assert "400 operating hours" in answered["result"]["text"]
        assert answered["result"]["citations"][0]["uri"].endswith("/manual.md")
        told = gateway.client.get(answered["links"]["timeline"]).json()["timeline"]
        assert [each["what"] for each in told][:2] == ["submitted", "running"]
        events = streamed(gateway, answered["links"]["events"])
        assert [name for name, _ in events][-2:] == ["result", "end"]
        assert events[-1][1] == {"job_id": answered["job_id"], "state": "completed"}


def streamed(gateway: RunningGateway, path: str) -> list[tuple[str, dict[str, object]]]:
    """All events of a job that has ended: names and data."""
    events = []
    with gateway.client.stream("GET", path) as stream:
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
    return events
