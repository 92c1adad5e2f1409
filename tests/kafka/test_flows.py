"""Flows on Apache Kafka, run and used as a team would: own processes, plain clients, signals."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point
from tests.headrace_process import Payload, PlainClient, RunningFlows, headrace
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]  # each starts flows that load a model, on two cores


@pytest.fixture
def variables(kafka: ApacheKafka, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "files").mkdir()
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "HEADRACE_DATA_DIR": str(tmp_path / "data"),
        "HEADRACE_FILE_ROOTS": str(tmp_path / "files"),
        "HEADRACE_GROUP_PREFIX": f"test-{uuid4().hex[:8]}",
    }


def document(tmp_path: Path, name: str, content: bytes) -> Payload:
    """Write a file and describe it as an upstream system would."""
    path = tmp_path / "files" / name
    path.write_bytes(content)
    return {"document_id": f"{tmp_path.name}/{name}", "job_id": uuid4().hex, "uri": path.as_uri()}


def jobs(payloads: Sequence[Payload]) -> Counter[str]:
    return Counter(str(payload["job_id"]) for payload in payloads)


def ended(*uploads: Payload, times: int = 1, at_least: int | None = None) -> Callable[[list[Payload]], bool]:
    """Tells whether all of these jobs, or at least some, are among what was read, so many times."""
    wanted = [str(payload["job_id"]) for payload in uploads]
    needed = len(wanted) if at_least is None else at_least

    def enough(found: list[Payload]) -> bool:
        counted = jobs(found)
        return sum(counted[job] >= times for job in wanted) >= needed

    return enough


def states(statuses: Sequence[Payload], job: Payload) -> list[object]:
    return [status["state"] for status in statuses if status["job_id"] == job["job_id"]]


def in_state(state: str, *uploads: Payload) -> Callable[[list[Payload]], bool]:
    return lambda found: all(states(found, upload)[-1:] == [state] for upload in uploads)


def with_reason(letters: Sequence[Payload], reason: str) -> list[Payload]:
    return [letter for letter in letters if reason in str(letter["message"])]


def reasons_given(*reasons: str) -> Callable[[list[Payload]], bool]:
    return lambda found: all(with_reason(found, reason) for reason in reasons)


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
        client.read_until("documents.indexed", ended(first))
        question: Payload = {"job_id": uuid4().hex, "prompt": "How many buckets has the old wheel?"}
        client.send("requests.submitted", question)
        results = client.read_until("results.completed", ended(question))
        assert flows.terminate() == 0, flows.log.read_text()
    (result,) = (payload for payload in results if payload["job_id"] == question["job_id"])
    assert "forty oak buckets" in str(result["text"])
    citations = result["citations"]
    assert isinstance(citations, list)
    assert citations[0]["document_id"] == first["document_id"]
    client.send("documents.uploaded", second)
    with RunningFlows("ingest", "answer", log=tmp_path / "log", **variables) as flows:
        indexed = client.read_until("documents.indexed", ended(second))
        assert flows.terminate() == 0
    assert jobs(indexed)[str(first["job_id"])] == 1
    statuses = client.read_until("jobs.status", in_state("completed", first, second))
    assert states(statuses, first) == ["running"] * 5 + ["completed"]


def test_bad_input_is_dead_lettered_with_its_reason_and_the_flows_go_on(
    client: PlainClient, variables: dict[str, str], tmp_path: Path
) -> None:
    huge = document(tmp_path, "huge.txt", b"")
    with (tmp_path / "files" / "huge.txt").open("wb") as file:
        file.truncate(100_000_000)
    good = document(tmp_path, "good.txt", b"A good document after all the bad ones.")
    changed = document(tmp_path, "changed.txt", b"This is not what was announced.")
    changed["sha256"] = hashlib.sha256(b"What was announced.").hexdigest()
    uploads: dict[str, tuple[Payload | bytes, str]] = {
        "malformed JSON": (b'{"document_id": "x", ', "Invalid JSON"),
        "900 KB of junk": (b"[" + b"0," * 450_000 + b"0]", "should be an object"),
        "wrong type": ({"job_id": uuid4().hex, "text": 5}, "text: Input should be a valid string"),
        "missing file": ({"job_id": uuid4().hex, "uri": (tmp_path / "files" / "none.txt").as_uri()}, "none.txt"),
        "outside the roots": ({"job_id": uuid4().hex, "uri": "file:///etc/passwd"}, "HEADRACE_FILE_ROOTS"),
        "sha256 mismatch": (changed, "the upload announced"),
        "empty document": (document(tmp_path, "empty.txt", b""), "empty.txt"),
        "no text": (document(tmp_path, "blank.html", b"<html><body><script>1</script></body></html>"), "blank.html"),
        "100 MB": (huge, "100000000"),
    }
    requests: dict[str, tuple[Payload, str]] = {
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
        client.read_until("documents.indexed", ended(good))
        everything: dict[str, Mapping[str, tuple[Payload | bytes, str]]] = {
            "documents.uploaded.dlq": uploads,
            "requests.submitted.dlq": requests,
        }
        for topic, cases in everything.items():
            letters = client.read_until(topic, reasons_given(*(reason for _, reason in cases.values())))
            for name, (payload, reason) in cases.items():
                letter = with_reason(letters, reason)[-1]
                assert letter["error_class"] == "poison", name
                assert letter["retryable"] is False, name
                client.read_until("jobs.status", in_state("dead_lettered", letter))
                if isinstance(payload, dict):
                    assert letter["job_id"] == payload.get("job_id"), name
        assert flows.terminate() == 0


@pytest.mark.slow
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
            client.read_until("documents.indexed", ended(*uploads, times=len(points) + 1))
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
    for payload in uploads:
        client.send("documents.uploaded", payload)
    with RunningFlows("ingest", log=tmp_path / "log", **variables) as flows:
        client.read_until("documents.indexed", ended(*uploads, at_least=50))
        flows.kill()
    with RunningFlows("ingest", log=tmp_path / "log", **variables) as flows:
        client.read_until("documents.indexed", ended(*uploads))
        assert flows.terminate() == 0
    held = _points(tmp_path / "data" / "vectors", [str(payload["document_id"]) for payload in uploads])
    assert len(held) == len(uploads)


@pytest.fixture
def running_index(client: PlainClient, variables: dict[str, str], tmp_path: Path) -> Iterator[RunningFlows]:
    del client
    with RunningFlows("index", log=tmp_path / "log", **variables) as flows:
        yield flows


def test_a_second_opener_of_the_embedded_index_is_told_to_use_a_server(
    running_index: RunningFlows, variables: dict[str, str]
) -> None:
    refused = headrace("run", "answer", **variables)
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert "HEADRACE_QDRANT_URL" in line
    assert "headrace run ingest answer" in line
    assert running_index.process.poll() is None


def test_a_second_process_on_a_recovery_directory_refuses_to_start(
    running_index: RunningFlows, variables: dict[str, str]
) -> None:
    refused = headrace("run", "index", **variables)
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert "is in use by another process" in line
    assert running_index.process.poll() is None
