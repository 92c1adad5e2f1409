"""Flows on Apache Kafka, run and used as a team would: own processes, plain clients, signals."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.headrace import PlainClient, RunningFlows, headrace

pytestmark = pytest.mark.kafka


@pytest.fixture
def client(kafka: ApacheKafka) -> PlainClient:
    """A client on a broker with the catalogue, all topics empty."""
    created = headrace("topics", "create", "--bootstrap", kafka.bootstrap, "--partitions", "4", "--json")
    assert created.returncode == 0, created.stderr
    client = PlainClient(kafka.bootstrap)
    client.empty(json.loads(created.stdout)["existing"])
    return client


@pytest.fixture
def variables(kafka: ApacheKafka, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "files").mkdir()
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "HEADRACE_DATA_DIR": str(tmp_path / "data"),
        "HEADRACE_FILE_ROOTS": str(tmp_path / "files"),
        "HEADRACE_GROUP_PREFIX": f"test-{uuid4().hex[:8]}",
    }


def document(tmp_path: Path, name: str, content: bytes) -> dict[str, object]:
    """Write a file and describe it as an upstream system would."""
    path = tmp_path / "files" / name
    path.write_bytes(content)
    return {"document_id": f"{tmp_path.name}/{name}", "job_id": uuid4().hex, "uri": path.as_uri()}


def jobs(payloads: list[dict[str, object]]) -> Counter[str]:
    return Counter(str(payload["job_id"]) for payload in payloads)


def test_creating_the_topics_again_changes_nothing(client: PlainClient, kafka: ApacheKafka) -> None:
    del client
    again = headrace("topics", "create", "--bootstrap", kafka.bootstrap, "--partitions", "4", "--json")
    report = json.loads(again.stdout)
    assert (report["created"], report["differences"]) == ([], [])
    assert "results.completed" in report["existing"]


def test_a_plain_producer_gets_its_answer_and_a_restart_resumes(
    client: PlainClient, variables: dict[str, str], tmp_path: Path
) -> None:
    first = document(
        tmp_path, "wheel.md", b"# The wheel\n\nThe old wheel has forty oak buckets and turns at six rpm.\n"
    )
    second = document(tmp_path, "race.txt", b"The headrace is 310 metres long and two metres deep.\n")
    with RunningFlows("ingest", "answer", log=tmp_path / "log", **variables) as flows:
        client.send("documents.uploaded", first)
        client.read_until("documents.indexed", lambda found: first["job_id"] in jobs(found))
        question = {"job_id": uuid4().hex, "prompt": "How many buckets has the old wheel?"}
        client.send("requests.submitted", question)
        results = client.read_until("results.completed", lambda found: question["job_id"] in jobs(found))
        assert flows.terminate() == 0, flows.log.read_text()
    (result,) = (payload for payload in results if payload["job_id"] == question["job_id"])
    assert "forty oak buckets" in str(result["text"])
    citations = result["citations"]
    assert isinstance(citations, list)
    assert citations[0]["document_id"] == first["document_id"]
    client.send("documents.uploaded", second)
    with RunningFlows("ingest", "answer", log=tmp_path / "log", **variables) as flows:
        indexed = client.read_until("documents.indexed", lambda found: second["job_id"] in jobs(found))
        assert flows.terminate() == 0
    assert jobs(indexed)[str(first["job_id"])] == 1
    states = client.read_until(
        "jobs.status", lambda found: all(_states(found, upload)[-1:] == ["completed"] for upload in (first, second))
    )
    assert _states(states, first) == ["running"] * 4 + ["completed"]


def _states(statuses: list[dict[str, object]], upload: dict[str, object]) -> list[object]:
    return [status["state"] for status in statuses if status["job_id"] == upload["job_id"]]


def test_bad_input_is_dead_lettered_with_its_reason_and_the_flows_go_on(
    client: PlainClient, variables: dict[str, str], tmp_path: Path
) -> None:
    huge = document(tmp_path, "huge.txt", b"")
    with (tmp_path / "files" / "huge.txt").open("wb") as file:
        file.truncate(100_000_000)
    good = document(tmp_path, "good.txt", b"A good document after all the bad ones.")
    changed = document(tmp_path, "changed.txt", b"This is not what was announced.")
    changed["sha256"] = hashlib.sha256(b"What was announced.").hexdigest()
    uploads: dict[str, tuple[dict[str, object] | bytes, str]] = {
        "malformed JSON": (b'{"document_id": "x", ', "Invalid JSON"),
        "wrong type": ({"job_id": uuid4().hex, "text": 5}, "text: Input should be a valid string"),
        "missing file": ({"job_id": uuid4().hex, "uri": (tmp_path / "files" / "none.txt").as_uri()}, "none.txt"),
        "outside the roots": ({"job_id": uuid4().hex, "uri": "file:///etc/passwd"}, "HEADRACE_FILE_ROOTS"),
        "sha256 mismatch": (changed, "the upload announced"),
        "empty document": (document(tmp_path, "empty.txt", b""), "empty.txt"),
        "no text": (document(tmp_path, "blank.html", b"<html><body><script>1</script></body></html>"), "blank.html"),
        "100 MB": (huge, "100000000"),
    }
    requests: dict[str, tuple[dict[str, object], str]] = {
        "unknown kind": ({"job_id": uuid4().hex, "kind": "poem", "prompt": "x"}, "kind"),
        "200,000 characters": ({"job_id": uuid4().hex, "prompt": "x" * 200_000}, "the limit is 100000"),
        "deadline passed": (
            {"job_id": uuid4().hex, "prompt": "x", "deadline_at": "2020-01-01T00:00:00Z"},
            "deadline",
        ),
    }
    with RunningFlows("ingest", "answer", log=tmp_path / "log", **variables) as flows:
        for payload, _ in uploads.values():
            client.send("documents.uploaded", payload)
        for payload, _ in requests.values():
            client.send("requests.submitted", payload)
        client.send("documents.uploaded", good)
        client.read_until("documents.indexed", lambda found: good["job_id"] in jobs(found))
        for topic, cases in (("documents.uploaded.dlq", uploads), ("requests.submitted.dlq", requests)):
            expected = [reason for _, reason in cases.values()]
            letters = client.read_until(
                topic, lambda found, expected=expected: all(_reasons(found, reason) for reason in expected)
            )
            for name, (payload, reason) in cases.items():
                letter = _reasons(letters, reason)[-1]
                assert letter["error_class"] == "poison", name
                assert letter["retryable"] is False, name
                statuses = client.read_until(
                    "jobs.status", lambda found, letter=letter: "dead_lettered" in _states(found, letter)
                )
                assert _states(statuses, letter)[-1] == "dead_lettered", name
                if isinstance(payload, dict):
                    assert letter["job_id"] == payload.get("job_id"), name
        assert flows.terminate() == 0


def _reasons(letters: list[dict[str, object]], reason: str) -> list[dict[str, object]]:
    return [letter for letter in letters if reason in str(letter["message"])]


def test_fused_and_split_flows_give_identical_points(
    client: PlainClient, variables: dict[str, str], tmp_path: Path
) -> None:
    long_text = "".join(f"Entry {n}: the gauge at the weir read {n * 7 % 300} centimetres.\n\n" for n in range(2_500))
    uploads = [
        document(tmp_path, "short.md", b"# Short\n\nA short document with one fact: the sluice has nine boards.\n"),
        document(tmp_path, "long.txt", long_text.encode()),
    ]
    for payload in uploads:
        client.send("documents.uploaded", payload)
    points: list[list[Point]] = []
    for flows in (("ingest",), ("extract", "embed", "index")):
        data = tmp_path / "-".join(flows)
        own = variables | {"HEADRACE_DATA_DIR": str(data)}
        with RunningFlows(*flows, log=tmp_path / "log", **own) as running:
            wanted = {str(payload["job_id"]): len(points) + 1 for payload in uploads}
            client.read_until(
                "documents.indexed",
                lambda found, wanted=wanted: all(jobs(found)[job] >= count for job, count in wanted.items()),
            )
            assert running.terminate() == 0
        points.append(_points(data / "vectors", [str(payload["document_id"]) for payload in uploads]))
    fused, split = points
    assert len(fused) > 100
    assert [(point.id, point.text, point.label) for point in fused] == [
        (point.id, point.text, point.label) for point in split
    ]
    assert any((tmp_path / "extract-embed-index" / "objects" / "claims").iterdir())


def _points(directory: Path, document_ids: list[str]) -> list[Point]:
    async def read() -> list[Point]:
        index = EdgeIndex(directory)
        try:
            found = [
                await index.list_document("documents", tenant="default", document_id=document_id)
                for document_id in document_ids
            ]
        finally:
            await index.close()
        return [point for points in found for point in points]

    return asyncio.run(read())


def test_after_kill_9_every_accepted_document_is_indexed(
    client: PlainClient, variables: dict[str, str], tmp_path: Path
) -> None:
    uploads = [document(tmp_path, f"{n}.txt", f"Log entry {n}: level {n} cm.".encode()) for n in range(150)]
    ids = {str(payload["job_id"]) for payload in uploads}
    for payload in uploads:
        client.send("documents.uploaded", payload)
    for at_least in (20, 70):
        with RunningFlows("ingest", log=tmp_path / "log", **variables) as flows:
            client.read_until(
                "documents.indexed", lambda found, at_least=at_least: len(ids & jobs(found).keys()) >= at_least
            )
            flows.kill()
    with RunningFlows("ingest", log=tmp_path / "log", **variables) as flows:
        client.read_until("documents.indexed", lambda found: ids <= jobs(found).keys())
        assert flows.terminate() == 0
    held = _points(tmp_path / "data" / "vectors", [str(payload["document_id"]) for payload in uploads])
    assert len(held) == len(uploads)


@pytest.fixture
def running_ingest(client: PlainClient, variables: dict[str, str], tmp_path: Path) -> Iterator[RunningFlows]:
    del client
    with RunningFlows("ingest", log=tmp_path / "log", **variables) as flows:
        yield flows


def test_a_second_opener_of_the_embedded_index_is_told_to_use_a_server(
    running_ingest: RunningFlows, variables: dict[str, str]
) -> None:
    refused = headrace("run", "answer", **variables)
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert "HEADRACE_QDRANT_URL" in line
    assert "headrace run ingest answer" in line
    assert running_ingest.process.poll() is None


def test_a_second_process_on_a_recovery_directory_refuses_to_start(
    running_ingest: RunningFlows, variables: dict[str, str]
) -> None:
    refused = headrace("run", "ingest", **variables)
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert "is in use by another process" in line
    assert running_ingest.process.poll() is None
