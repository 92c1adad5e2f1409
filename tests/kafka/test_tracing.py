"""One trace shows one job: from a plain producer through all flows to model and receiver, on Apache Kafka."""

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Message

from connectors.kafka.client import record_of
from schemas.trace import Trace, parse, root_of
from tests.chaos.parts import ModelServer
from tests.gateway.running import RunningGateway
from tests.headrace_process import Payload, PlainClient, RunningFlows, headrace
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import read, wait_for
from tests.otlp_collector import Collected, Collector, collecting
from tests.webhook_receiver import SECRET, Receiver, receiving

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]  # each starts flows that load a model, on two cores

PRODUCERS_SPAN = "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[ModelServer]:
    with ModelServer(tmp_path / "calls") as llm:
        yield llm


@pytest.fixture
def variables(kafka: ApacheKafka, llm: ModelServer, tmp_path: Path) -> dict[str, str]:
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "HEADRACE_DATA_DIR": str(tmp_path / "data"),
        "HEADRACE_GROUP_PREFIX": f"test-{uuid4().hex[:8]}",
        "HEADRACE_LLM_URL": llm.url,
        "HEADRACE_LLM_MODEL": "test",
        "HEADRACE_WEBHOOK_SECRETS": json.dumps({"*": SECRET}),
        "HEADRACE_WEBHOOK_PRIVATE": "true",
        "HEADRACE_BUDGET": json.dumps({"windows": [{"seconds": 3600, "tokens": 10_000_000}]}),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }


def trace_of(message: Message) -> Trace:
    trace = parse(record_of(message).header("traceparent") or "")
    assert trace is not None
    return trace


def records_of(bootstrap: str, topic: str, job_id: str) -> list[Message]:
    return [message for message in read(bootstrap, topic) if json.loads(message.value() or b"")["job_id"] == job_id]


def traces_on(bootstrap: str, topic: str, job_id: str) -> set[str]:
    return {trace_of(message).trace_id for message in records_of(bootstrap, topic, job_id)}


def parents_outside(spans: Sequence[Collected]) -> set[str]:
    """Parents that are no spans of the same trace: where it came from."""
    return {span.parent_id for span in spans} - {span.span_id for span in spans}


def asking(job_id: str, receiver: Receiver) -> Payload:
    return {
        "job_id": job_id,
        "tenant": "acme",
        "prompt": "TOOL:search How long is the race?",
        "tools": [{"name": "search"}],
        "callback_url": receiver.url("/hook", "127.0.0.1"),
    }


def test_one_trace_shows_one_job_through_model_tool_and_webhook(
    client: PlainClient,
    variables: dict[str, str],
    llm: ModelServer,
    receiver: Receiver,
    collector: Collector,
    kafka: ApacheKafka,
    tmp_path: Path,
) -> None:
    trace, job_id = Trace(uuid4().hex, PRODUCERS_SPAN), uuid4().hex
    named = variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with RunningFlows("answer", "search", "webhooks", log=tmp_path / "log", **named) as flows:
        client.send("requests.submitted", asking(job_id, receiver), key=job_id, traceparent=trace.traceparent)
        (posted,) = receiver.wait_for(1)
        client.read_until("usage.tokens", lambda found: len([x for x in found if x["job_id"] == job_id]) >= 2)
        assert flows.terminate() == 0, flows.log.read_text()
    spans = collector.of(trace.trace_id)

    topics = ("jobs.status", "results.completed", "results.delta", "usage.tokens", "tools.requested")
    for topic in (*topics, "tools.completed", "callbacks.deferred"):
        assert traces_on(kafka.bootstrap, topic, job_id) == {trace.trace_id}, topic
    calls = [parse(call.traceparent or "") for call in llm.calls()[job_id]]
    called = parse(posted.headers["traceparent"])
    assert called is not None
    assert [call.trace_id for call in calls if call is not None] == [trace.trace_id] * 2
    by_id = {span.span_id: span for span in spans}
    assert {by_id[call.span_id].name for call in calls if call is not None} == {"chat test"}
    assert by_id[called.span_id].name == "POST callback"

    assert len(by_id) == len(spans)  # each ended once
    assert parents_outside(spans) == {PRODUCERS_SPAN}
    names = [span.name for span in spans]
    assert names.count("chat test") == names.count("answer.infer") == 2
    assert names.count("answer process requests.submitted") == names.count("search process tools.requested") == 1
    assert {"answer process tools.requested", "webhooks process callbacks.deferred"} <= set(names)
    infer = next(span for span in spans if span.name == "answer.infer")
    assert infer.attributes["headrace.job_id"] == job_id
    assert (infer.attributes["headrace.tenant"], infer.attributes["headrace.attempt"]) == ("acme", 1)
    assert by_id[infer.parent_id].name == "answer process requests.submitted"
    assert b"How long is the race?" not in collector.raw
    assert SECRET.encode() not in collector.raw


@pytest.mark.slow
def test_documents_keep_their_trace_through_split_flows(
    client: PlainClient, variables: dict[str, str], collector: Collector, kafka: ApacheKafka, tmp_path: Path
) -> None:
    trace, job_id = Trace(uuid4().hex, PRODUCERS_SPAN), uuid4().hex
    named = variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    upload: Payload = {"job_id": job_id, "document_id": job_id, "text": "The race is 310 metres long."}
    with RunningFlows("extract", "embed", "index", log=tmp_path / "log", **named) as flows:
        client.send("documents.uploaded", upload, traceparent=trace.traceparent)
        client.read_until("documents.indexed", lambda found: any(each["job_id"] == job_id for each in found))
        assert flows.terminate() == 0, flows.log.read_text()
    for topic in ("documents.extracted", "documents.embedded", "documents.indexed", "jobs.status"):
        assert traces_on(kafka.bootstrap, topic, job_id) == {trace.trace_id}, topic
    spans = collector.of(trace.trace_id)
    assert parents_outside(spans) == {PRODUCERS_SPAN}
    processed = [span.name for span in spans if span.kind == "consumer"]
    assert processed == [
        "extract process documents.uploaded",
        "embed process documents.extracted",
        "index process documents.embedded",
    ]


@pytest.mark.slow
def test_a_job_without_a_trace_has_one_of_its_own_that_outlives_kill_9_redrives_and_a_collector_that_is_down(
    client: PlainClient, variables: dict[str, str], llm: ModelServer, kafka: ApacheKafka, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    named = variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    job_id, poison = uuid4().hex, uuid4().hex
    own, log = root_of(job_id).trace_id, tmp_path / "log"
    llm.put("plan", latency_s=[600, 600])
    with RunningFlows("answer", log=log, **named) as flows:
        client.send("requests.submitted", {"job_id": job_id, "kind": "generate", "prompt": "Why?"}, key=job_id)
        wait_for("the call", lambda: job_id in llm.calls())
        client.read_until("jobs.status", lambda found: any(each["job_id"] == job_id for each in found))
        flows.kill()
    llm.put("plan", latency_s=[0, 0])
    with RunningFlows("answer", log=log, **named) as flows:
        refused: Payload = {"job_id": poison, "kind": "generate", "prompt": "FAULT:400"}
        client.send("requests.submitted", refused, key=poison)
        client.send("requests.submitted", b'{"job_id": 7, "prompt": ', key="broken")
        client.read_until("results.completed", lambda found: any(each["job_id"] == job_id for each in found))
        letters = client.read_until("requests.submitted.dlq", lambda found: len(found) >= 2)
        redriven = headrace("dlq", "redrive", "--error-class", "poison", "--json", **named)
        assert redriven.returncode == 0, redriven.stderr
        client.read_until("requests.submitted.dlq", lambda found: len(found) >= 4)
        assert flows.terminate() == 0, log.read_text()
    for topic in ("jobs.status", "results.completed", "usage.tokens"):
        assert traces_on(kafka.bootstrap, topic, job_id) == {own}, topic
    assert {parse(call.traceparent or "") for call in llm.calls()[job_id]} != {None}
    assert {(call.traceparent or "").split("-")[1] for call in llm.calls()[job_id]} == {own}
    wanted = sorted(root_of(str(letter["job_id"])).trace_id for letter in letters) * 2
    assert sorted(trace_of(letter).trace_id for letter in read(kafka.bootstrap, "requests.submitted.dlq")) == sorted(
        wanted
    )
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lost = [line for line in lines if line["event"] == "the collector takes no spans; they are lost until it does"]
    assert 1 <= len(lost) <= 2  # one a process and minute


def test_a_caller_of_the_gateway_learns_the_trace_and_its_own_is_gone_on_with(
    client: PlainClient, collector: Collector, kafka: ApacheKafka, tmp_path: Path
) -> None:
    del client
    trace, job_id, fresh = Trace(uuid4().hex, PRODUCERS_SPAN), uuid4().hex, uuid4().hex
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with RunningGateway(kafka.bootstrap, tmp_path / "gateway", **named) as gateway:
        answer = gateway.post("/v1/requests", {"prompt": "?", "job_id": job_id}, traceparent=trace.traceparent)
        other = gateway.post("/v1/requests", {"prompt": "?", "job_id": fresh})
        assert gateway.terminate() == 0
        lines = gateway.lines()
    told = parse(other.headers["traceresponse"])
    assert told is not None
    assert told.trace_id == root_of(fresh).trace_id
    (sent,) = records_of(kafka.bootstrap, "requests.submitted", job_id)
    assert answer.headers["traceresponse"] == trace_of(sent).traceparent
    (span,) = collector.of(trace.trace_id)
    assert (span.service, span.name, span.kind) == ("headrace-gateway", "POST /v1/requests", "server")
    assert (span.span_id, span.parent_id) == (trace_of(sent).span_id, PRODUCERS_SPAN)
    (own,) = collector.of(root_of(fresh).trace_id)
    assert own.parent_id == ""
    assert [line["trace_id"] for line in lines if line.get("job_id") == job_id] == [trace.trace_id]
