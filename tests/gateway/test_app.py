"""The HTTP API of a running gateway, on the embedded broker."""

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from connectors.kafka.client import record_of
from connectors.kafka.embedded import EmbeddedKafka
from connectors.object_store import ObjectStore
from gateway.keys import digest_of, new_key
from schemas.cancellations import CancelRequested
from schemas.documents import DocumentUploaded
from schemas.event import utc_now
from schemas.requests import RequestSubmitted
from tests.gateway.running import RunningGateway, answer_to, bearer, create_all_topics, until

Payload = dict[str, Any]

ACME, UMBRA, ROOT = new_key(), new_key(), new_key()
PAGE = "https://page.example.org"
TENANTS = {digest_of(ACME): "acme", digest_of(UMBRA): "umbra", digest_of(ROOT): "*"}


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        create_all_topics(kafka)
        yield kafka


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed")


@pytest.fixture(scope="module")
def gateway(kafka: EmbeddedKafka, data_dir: Path) -> Iterator[RunningGateway]:
    """One with keys, as a team runs it; its client is acme's."""
    variables = {
        "HEADRACE_API_KEYS": json.dumps(TENANTS),
        "HEADRACE_MAX_DOCUMENT_BYTES": "2000000",
        "HEADRACE_RATE_PER_S": "1000",
        "HEADRACE_RATE_BURST": "1000",
        "HEADRACE_CORS_ORIGINS": PAGE,
        "HEADRACE_WEBHOOK_SECRETS": '{"acme": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}',
    }
    with RunningGateway(kafka.bootstrap, data_dir, key=ACME, **variables) as gateway:
        yield gateway.ready()


@pytest.fixture(scope="module")
def unlocked(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One without keys, as on a developer's machine."""
    with RunningGateway(kafka.bootstrap, tmp_path_factory.mktemp("open")) as gateway:
        yield gateway.ready()


class Topic:
    """All records of a topic, as any consumer sees them."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self._bootstrap = bootstrap
        self._name = name

    def of(self, job_id: str) -> list[tuple[Payload, dict[str, bytes]]]:
        """Bodies and headers of a job's records."""
        consumer = Consumer(
            {"bootstrap.servers": self._bootstrap, "group.id": "test", "enable.partition.eof": True, "log_level": 2}
        )
        try:
            parts = range(4)
            consumer.assign([TopicPartition(self._name, part, 0) for part in parts])
            ended: set[int | None] = set()
            found = []
            while len(ended) < len(parts):
                message = consumer.poll(10)
                assert message is not None
                if message.error() is not None:
                    ended.add(message.partition())
                    continue
                body = json.loads(message.value() or b"")
                if body.get("job_id") == job_id:
                    found.append((body, dict(record_of(message).headers)))
            return found
        finally:
            consumer.close()


def upload(gateway: RunningGateway, content: bytes, name: str = "a.txt", **fields: str) -> Payload:
    answer = gateway.client.post("/v1/documents", files={"file": (name, content)}, data=fields)
    assert answer.status_code == 202, answer.text
    accepted: Payload = answer.json()
    return accepted


def problem(answer: httpx.Response, status: int, slug: str | None = None) -> Payload:
    """The problem that it is."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: Payload = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert slug is None or body["type"] == f"/problems/{slug}"
    return body


def test_what_is_accepted_is_on_its_topic(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = gateway.post("/v1/requests", {"prompt": "What is a headrace?", "passages": 3}, traceparent=trace)
    accepted = answer.json()
    assert answer.headers["location"] == accepted["links"]["self"]
    ((body, headers),) = Topic(kafka.bootstrap, "requests.submitted").of(accepted["job_id"])
    event = RequestSubmitted.model_validate(body)
    assert (event.prompt, event.passages, event.tenant) == ("What is a headrace?", 3, "acme")
    assert headers["traceparent"] == trace.encode()
    assert headers["ce_type"] == RequestSubmitted.TYPE.encode()


def test_a_job_is_known_as_soon_as_it_is_accepted(gateway: RunningGateway) -> None:
    for _ in range(20):
        job_id = gateway.ask(job_id=str(uuid4()))
        job = gateway.client.get(f"/v1/jobs/{job_id}").json()
        assert (job["state"], job["ended"], job["tenant"], job["kind"]) == ("accepted", False, "acme", "request")


def test_a_job_tells_its_story_and_its_answer(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    job_id = gateway.ask(job_id=str(uuid4()))
    problem(gateway.client.get(f"/v1/jobs/{job_id}/result"), 404, "no-result")
    answer_to(kafka.bootstrap, job_id, "Every 400 hours.")
    until(lambda: bool(gateway.client.get(f"/v1/jobs/{job_id}").json()["ended"]))
    job = gateway.client.get(f"/v1/jobs/{job_id}").json()
    assert job["result"]["text"] == "Every 400 hours."
    assert job["user_sees"] == "Your answer is ready."
    assert job["usage"]["prompt_tokens"] == 10
    assert gateway.client.get(job["links"]["result"]).json()["text"] == "Every 400 hours."
    told = gateway.client.get(job["links"]["timeline"]).json()["timeline"]
    assert [each["what"] for each in told] == ["submitted", "answered"]


def test_a_long_result_is_behind_its_link_alone(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    job_id = gateway.ask(job_id=str(uuid4()))
    answer_to(kafka.bootstrap, job_id, "x" * 70_000)
    until(lambda: bool(gateway.client.get(f"/v1/jobs/{job_id}").json()["ended"]))
    job = gateway.client.get(f"/v1/jobs/{job_id}").json()
    assert job["result"] is None
    assert len(gateway.client.get(job["links"]["result"]).json()["text"]) == 70_000


@pytest.mark.parametrize("job_id", ["a/b", "q 1?#%2F", "größe", "../../v1/me", "x" * 256, "a/timeline"])
def test_a_job_is_found_whatever_its_id_is_made_of(gateway: RunningGateway, job_id: str) -> None:
    answer = gateway.post("/v1/requests", {"prompt": "?", "job_id": job_id})
    links = answer.json()["links"]
    assert gateway.client.get(links["timeline"]).json()["job_id"] == job_id
    if not job_id.endswith("/timeline"):
        assert gateway.client.get(links["self"]).json()["job_id"] == job_id


def test_jobs_are_listed_newest_first_page_by_page(gateway: RunningGateway) -> None:
    asked = [gateway.ask(job_id=str(uuid4())) for _ in range(5)]
    query = "/v1/jobs?limit=3&kind=request"
    until(lambda: all(job_id in gateway.client.get("/v1/jobs").text for job_id in asked))
    first = gateway.client.get(query).json()
    second = gateway.client.get(f"{query}&before={first['next']}").json()
    listed = [job["job_id"] for job in (*first["jobs"], *second["jobs"])]
    assert listed[:5] == asked[::-1]
    problem(gateway.client.get("/v1/jobs?before=nonsense"), 400, "cursor")
    problem(gateway.client.get("/v1/jobs?limit=0"), 422)
    problem(gateway.client.get("/v1/jobs?state=nonsense"), 422)


def test_a_document_is_sent_as_text_or_by_reference_or_is_deleted(
    gateway: RunningGateway, kafka: EmbeddedKafka
) -> None:
    topic = Topic(kafka.bootstrap, "documents.uploaded")
    for fields in (
        {"text": "The filter is changed every 400 hours."},
        {"uri": "https://example.org/a.pdf", "document_id": "a"},
        {"op": "delete", "document_id": "a"},
    ):
        accepted = gateway.post("/v1/documents", dict(fields)).json()
        ((body, _),) = topic.of(accepted["job_id"])
        event = DocumentUploaded.model_validate(body)
        assert (event.tenant, event.document_id) == ("acme", accepted["document_id"])


def test_a_delete_that_is_repeated_is_another_job(gateway: RunningGateway) -> None:
    delete: dict[str, object] = {"op": "delete", "document_id": "gone"}
    first, second = (gateway.post("/v1/documents", delete).json()["job_id"] for _ in range(2))
    assert first != second


def test_a_file_is_in_the_object_store_where_flows_read_it(
    gateway: RunningGateway, kafka: EmbeddedKafka, data_dir: Path
) -> None:
    content = bytes(range(256)) * 5000
    accepted = upload(gateway, content, "turbine manual.pdf", collection="manuals")
    ((body, _),) = Topic(kafka.bootstrap, "documents.uploaded").of(accepted["job_id"])
    event = DocumentUploaded.model_validate(body)
    assert event.collection == "manuals"
    assert event.sha256 == hashlib.sha256(content).hexdigest()
    assert event.uri is not None
    assert event.uri.endswith("/turbine_manual.pdf")
    store = ObjectStore(str(data_dir / "objects"))
    assert asyncio.run(store.read(event.uri, max_bytes=2_000_000)) == content


def test_a_file_of_the_same_name_is_a_new_version_of_the_document(gateway: RunningGateway) -> None:
    first, second = upload(gateway, b"one"), upload(gateway, b"two")
    assert first["document_id"] == second["document_id"]
    assert first["job_id"] != second["job_id"]
    assert upload(gateway, b"one", "b.txt")["document_id"] != first["document_id"]
    assert upload(gateway, b"one", document_id="mine")["document_id"] == "mine"


def test_a_file_beyond_the_limit_is_refused_and_leaves_nothing_behind(gateway: RunningGateway, data_dir: Path) -> None:
    before = {path for path in (data_dir / "objects").rglob("*") if path.is_file()}
    answer = gateway.client.post("/v1/documents", files={"file": ("a.bin", b"x" * 2_000_001)})
    problem(answer, 413, "too-large")
    problem(gateway.client.post("/v1/documents", files={"file": ("a.txt", b"")}), 422, "invalid")
    bad = gateway.client.post("/v1/documents", files={"file": ("a.txt", b"x")}, data={"collection": "../etc"})
    problem(bad, 422, "invalid")
    assert {path for path in (data_dir / "objects").rglob("*") if path.is_file()} == before


def test_one_key_is_one_job_however_often_it_comes(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    def send(_: int) -> httpx.Response:
        return gateway.post("/v1/requests", {"prompt": "Once?"}, **{"Idempotency-Key": "once"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert len(Topic(kafka.bootstrap, "requests.submitted").of(answers[0].json()["job_id"])) == 1


def test_one_key_with_another_body_is_refused(gateway: RunningGateway) -> None:
    key = {"Idempotency-Key": "body"}
    assert gateway.post("/v1/requests", {"prompt": "One?"}, **key).status_code == 202
    problem(gateway.post("/v1/requests", {"prompt": "Two?"}, **key), 422, "key-reused")
    problem(gateway.post("/v1/requests", {"prompt": "One?", "job_id": "j"}, **key), 422)
    assert gateway.post("/v1/documents", {"text": "One?"}, **key).status_code == 202  # another kind, another job


def test_one_key_of_two_tenants_is_two_jobs(gateway: RunningGateway) -> None:
    jobs = set()
    for key in (ACME, UMBRA):
        headers = bearer(key) | {"Idempotency-Key": "shared"}
        jobs.add(gateway.post("/v1/requests", {"prompt": "Whose?"}, **headers).json()["job_id"])
    assert len(jobs) == 2


def test_whoever_waits_gets_the_job_when_it_has_ended(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    job_id = str(uuid4())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.post, "/v1/requests", {"prompt": "?", "job_id": job_id}, Prefer="wait=25")
        until(lambda: gateway.client.get(f"/v1/jobs/{job_id}").status_code == 200)
        answer_to(kafka.bootstrap, job_id)
        answer = waiting.result()
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=25"
    assert answer.json()["result"]["text"] == "Every 400 hours."


def test_whoever_waits_in_vain_gets_what_others_get(gateway: RunningGateway) -> None:
    answer = gateway.post("/v1/requests", {"prompt": "?", "job_id": str(uuid4())}, Prefer="respond-async, wait=1")
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


def test_a_job_is_cancelled_by_an_event_unless_it_has_ended(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    job_id = gateway.ask(job_id=str(uuid4()))
    answer = gateway.client.delete(f"/v1/jobs/{job_id}?reason=too%20late")
    assert answer.status_code == 202
    assert answer.json()["cancel_requested"] is True
    ((body, _),) = Topic(kafka.bootstrap, "cancellations.requested").of(job_id)
    event = CancelRequested.model_validate(body)
    assert (event.tenant, event.reason) == ("acme", "too late")
    until(lambda: bool(gateway.client.get(f"/v1/jobs/{job_id}").json()["cancel_requested"]))
    answer_to(kafka.bootstrap, job_id)
    until(lambda: bool(gateway.client.get(f"/v1/jobs/{job_id}").json()["ended"]))
    problem(gateway.client.delete(f"/v1/jobs/{job_id}"), 409, "ended")
    problem(gateway.client.delete("/v1/jobs/nobody-knows"), 404, "unknown-job")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": NaN}', 400),
        (b'{"prompt": "x", "passages": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": "x", "passages": 1e999}', 422),
        (b'{"prompt": "x", "messages": ' + b"[" * 100_000, 400),
        (b'{"prompt": "x", "tools": ' + b"[" * 150 + b"]" * 150 + b"}", 422),
        (b"", 422),
        (b"{}", 422),
        (b'{"prompt": 7}', 422),
        (b'{"prompt": "x", "tenant": 7}', 422),
        (b'{"prompt": "x", "tenant": "umbra"}', 403),
        (b'{"prompt": "x", "job_id": []}', 422),
        (b'{"prompt": "x", "job_id": "\\u0000"}', 422),
        (b'{"prompt": "x", "deadline_at": "9999-12-31T23:59:59-14:00"}', 202),
        (b'{"prompt": "x", "submitted_at": "0001-01-01T00:00:00+14:00"}', 202),
        (b'{"prompt": "x", "submitted_at": 1e300}', 422),
        (b'{"prompt": "' + b"x" * 100_001 + b'"}', 422),
        (b'{"prompt": "' + b"x" * 5_000_000 + b'"}', 413),
    ],
)
def test_a_hostile_body_is_a_problem_of_its_sender(gateway: RunningGateway, body: bytes, status: int) -> None:
    for content in (body, iter([body])):  # with its length, and in chunks without
        answer = gateway.client.post("/v1/requests", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        if status != 202:
            assert "x" * 50 not in json.dumps(problem(answer, status))
    assert gateway.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/reviews/r/approve", "/v1/dead-letters/d/redrive", "/v1/requests"])
def test_no_route_reads_a_body_beyond_its_limit(gateway: RunningGateway, path: str) -> None:
    content = b'{"note": "' + b"x" * 5_000_000 + b'"}'
    for body in (content, iter([content])):
        answer = gateway.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {404, 413}  # where no body is read, the connection ends with the answer
    assert gateway.client.get("/healthz").status_code == 200


def send_endlessly(endless: socket.socket) -> None:
    for _ in range(1000):
        endless.sendall(b"x" * 65_536)


@pytest.mark.parametrize(
    "begins",
    [
        b"GET /?",
        b"GET / HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\nX: y\r\nY",
        b"POST /v1/requests HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",  # trailers
    ],
)
def test_endless_headers_are_cut_off(gateway: RunningGateway, begins: bytes) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as endless:
        endless.sendall(begins)
        with pytest.raises(OSError, match=r"reset|pipe"):
            send_endlessly(endless)
    assert gateway.client.get("/healthz").status_code == 200


def test_small_chunks_are_no_reason_to_be_cut_off(gateway: RunningGateway) -> None:
    body = json.dumps({"prompt": "x" * 100_000, "job_id": str(uuid4())}).encode()
    chunks = (body[start : start + 100] for start in range(0, len(body), 100))
    answer = gateway.client.post("/v1/requests", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 202


def test_fields_that_are_wrong_are_named(gateway: RunningGateway) -> None:
    body = problem(gateway.post("/v1/requests", {"messages": [{"role": "king", "content": "secret"}]}), 422, "invalid")
    assert body["errors"][0]["field"] == "messages.0.role"
    assert "secret" not in json.dumps(body)


def test_what_is_no_json_is_refused_by_its_media_type(gateway: RunningGateway) -> None:
    answer = gateway.client.post("/v1/requests", content=b"prompt=x", headers={"Content-Type": "text/plain"})
    problem(answer, 415)


def test_a_callback_needs_a_web_address_and_a_secret(gateway: RunningGateway) -> None:
    def ask(url: str, key: str = ACME) -> httpx.Response:
        return gateway.post("/v1/requests", {"prompt": "?", "callback_url": url}, **bearer(key))

    assert ask("https://example.org/hook").status_code == 202
    assert problem(ask("https://example.org/hook", UMBRA), 422)["errors"][0]["field"] == "callback_url"
    for url in ("ftp://example.org", "file:///etc/passwd", "/hook", "https://", "http://[", "javascript:x"):
        problem(ask(url), 422)


def test_what_is_not_there_is_a_problem(gateway: RunningGateway) -> None:
    problem(gateway.client.get("/v1/nothing"), 404)
    problem(gateway.client.put("/v1/requests"), 405)
    assert problem(gateway.client.get("/v1/jobs/q%2F1"), 404)["instance"] == "/v1/jobs/q%2F1"


def routes(gateway: RunningGateway) -> Iterator[tuple[str, str]]:
    """Every operation under /v1 that the description has."""
    described = gateway.client.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        yield from ((method, path) for method in operations if path.startswith("/v1/"))


def test_every_route_asks_for_a_key_and_says_so(gateway: RunningGateway) -> None:
    described = gateway.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    seen = 0
    for method, path in routes(gateway):
        assert described["paths"][path][method]["security"], (method, path)
        answer = httpx.request(method, gateway.url + path, trust_env=False, headers={"X-API-Key": f"no-{seen}"})
        assert answer.status_code in {401, 429}, (method, path)  # so many failures are too many
        seen += 1
    assert seen >= 10
    for path in ("/healthz", "/openapi.json"):
        assert httpx.get(gateway.url + path, trust_env=False).status_code == 200


def test_either_header_of_a_key_will_do(gateway: RunningGateway) -> None:
    described = gateway.client.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert sorted(scheme["type"] for scheme in schemes.values()) == ["apiKey", "http"]
    security = described["paths"]["/v1/jobs"]["get"]["security"]
    assert sorted(name for each in security for name in each) == sorted(schemes)
    assert all(len(each) == 1 for each in security)


def test_whoever_asks_too_often_is_told_when_to_go_on(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    variables = {
        "HEADRACE_API_KEYS": json.dumps(TENANTS),
        "HEADRACE_RATE_PER_S": "0.5",
        "HEADRACE_RATE_BURST": "3",
    }
    with RunningGateway(kafka.bootstrap, tmp_path, key=ACME, **variables) as limited:
        statuses = [limited.client.get("/v1/me").status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        told = limited.client.get("/v1/me")
        assert 1 <= int(told.headers["retry-after"]) <= 2
        assert limited.client.get("/v1/me", headers=bearer(UMBRA)).status_code == 200
        assert limited.client.get("/healthz").status_code == 200


def test_no_route_shows_a_tenant_what_is_anothers(gateway: RunningGateway) -> None:
    job_id = gateway.ask(job_id=f"acmes-{uuid4()}")
    until(lambda: job_id in gateway.client.get("/v1/jobs").text)
    for method, path in routes(gateway):
        url = gateway.url + path.replace("{job_id}", job_id)
        body: Payload = {"json": {"note": "x"}} if method == "post" else {}
        answer = httpx.request(method, url, headers=bearer(UMBRA), trust_env=False, timeout=30, **body)
        assert job_id not in answer.text or answer.status_code == 404, (method, path)
        if "{" in path:
            assert answer.status_code == 404, (method, path)
    for query in ("/v1/jobs?tenant=acme", "/v1/jobs"):
        answer = gateway.client.get(query, headers=bearer(UMBRA))
        assert job_id not in answer.text
    assert job_id in gateway.client.get("/v1/jobs?tenant=acme", headers=bearer(ROOT)).text
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=bearer(ROOT)).status_code == 200


def test_a_tenant_cannot_take_the_job_id_of_another(gateway: RunningGateway) -> None:
    job_id = gateway.ask(job_id=str(uuid4()))
    answer = gateway.post("/v1/requests", {"prompt": "Mine?", "job_id": job_id}, **bearer(UMBRA))
    problem(answer, 409, "job-id-taken")
    assert gateway.client.get(f"/v1/jobs/{job_id}").status_code == 200


def test_a_tenant_cannot_have_anothers_upload_read(
    gateway: RunningGateway, kafka: EmbeddedKafka, data_dir: Path
) -> None:
    accepted = upload(gateway, b"acme's secret", "secret.txt")
    ((body, _),) = Topic(kafka.bootstrap, "documents.uploaded").of(accepted["job_id"])
    hidden = str(body["uri"]).replace("/objects/", "/objects/../objects/./")
    for uri in (body["uri"], hidden, str(data_dir / "objects/claims/x")):
        problem(gateway.post("/v1/documents", {"uri": uri}, **bearer(UMBRA)), 422, "invalid")
    assert gateway.post("/v1/documents", {"uri": body["uri"]}).status_code == 202


def test_me_says_whose_key_it_is(gateway: RunningGateway, unlocked: RunningGateway) -> None:
    assert gateway.client.get("/v1/me").json() == {"tenant": "acme", "open": False}
    assert gateway.client.get("/v1/me", headers=bearer(ROOT)).json() == {"tenant": "*", "open": False}
    assert httpx.get(f"{gateway.url}/v1/me", headers={"X-API-Key": UMBRA}, trust_env=False).json()["tenant"] == "umbra"
    assert unlocked.client.get("/v1/me").json() == {"tenant": "*", "open": True}


def test_pages_of_named_origins_may_call_and_no_others(gateway: RunningGateway) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
    assert gateway.client.options("/v1/requests", headers=asked).headers["access-control-allow-origin"] == PAGE
    other = asked | {"Origin": "https://other.example.org"}
    assert "access-control-allow-origin" not in gateway.client.options("/v1/requests", headers=other).headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "https://evil.example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "127.0.0.1.evil.example.org"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 202),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
        ({"Host": "[::1]:80"}, 202),
    ],
)
def test_an_open_gateway_obeys_no_page_of_another_site(
    unlocked: RunningGateway, headers: dict[str, str], status: int
) -> None:
    assert unlocked.post("/v1/requests", {"prompt": "?"}, **headers).status_code == status
    reading = unlocked.client.get("/v1/jobs", headers=headers)
    assert reading.status_code == (403 if "evil" in headers.get("Host", "") else 200)


def test_a_web_socket_of_another_site_is_refused(unlocked: RunningGateway) -> None:
    url = f"{unlocked.url.replace('http', 'ws')}/v1/jobs/{unlocked.ask()}/ws"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, origin=Origin("https://evil.example.org"), proxy=None)
    assert refused.value.response.status_code == 403


def protocols(*names: str) -> list[Subprotocol]:
    return [Subprotocol(name) for name in names]


def test_a_web_socket_takes_a_key_from_its_subprotocols(gateway: RunningGateway) -> None:
    url = f"{gateway.url.replace('http', 'ws')}/v1/jobs/{gateway.ask(job_id=str(uuid4()))}/ws"
    with connect(url, subprotocols=protocols("headrace", f"bearer.{ACME}"), proxy=None) as accepted:
        assert accepted.subprotocol == "headrace"
    for offered, status in ((protocols("headrace", f"bearer.{UMBRA}"), 404), (protocols("headrace"), 401)):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, subprotocols=offered, proxy=None)
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["status"] == status


def test_a_stream_that_cannot_be_resumed_is_refused(gateway: RunningGateway) -> None:
    job_id = gateway.ask(job_id=str(uuid4()))
    events = f"/v1/jobs/{job_id}/events"
    problem(gateway.client.get(events, headers={"Last-Event-ID": "nonsense"}), 400, "position")
    problem(gateway.client.get(f"{events}?last_event_id=s1"), 400, "position")
    problem(gateway.client.get("/v1/jobs/nobody-knows/events"), 404, "unknown-job")


def test_the_log_has_a_line_per_request_without_what_was_asked(gateway: RunningGateway) -> None:
    job_id = gateway.ask(prompt="the secret of the turbine", job_id=f"logged-{uuid4()}")
    gateway.client.get(f"/v1/jobs/{job_id}?secret=query")
    until(lambda: [line["method"] for line in gateway.lines() if line.get("job_id") == job_id] == ["POST", "GET"])
    line = next(line for line in gateway.lines() if line.get("job_id") == job_id)
    assert (line["route"], line["status"], line["tenant"]) == ("/v1/requests", 202, "acme")
    assert "secret" not in gateway.log.read_text()
    assert "/healthz" not in gateway.log.read_text()


def test_answers_are_not_for_shared_caches_nor_to_be_sniffed(gateway: RunningGateway) -> None:
    headers = gateway.client.get("/v1/jobs").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert gateway.client.get("/").headers["location"] == "/console/"


def test_a_body_that_never_comes_to_its_end_leaves_the_gateway_well(gateway: RunningGateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as cut_off:
        head = f"POST /v1/requests HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {ACME}\r\nContent-Length: 100\r\n\r\n{{"
        cut_off.sendall(head.encode())
    assert gateway.client.get("/healthz").status_code == 200
    until(lambda: any(line.get("status") == 499 for line in gateway.lines()))


def test_deadlines_are_kept_as_they_were_sent(gateway: RunningGateway, kafka: EmbeddedKafka) -> None:
    at = utc_now()
    job_id = gateway.ask(job_id=str(uuid4()), deadline_at=at.isoformat())
    ((body, _),) = Topic(kafka.bootstrap, "requests.submitted").of(job_id)
    assert RequestSubmitted.model_validate(body).deadline_at == at


def test_the_page_is_served_so_that_it_loads_nothing_from_elsewhere(gateway: RunningGateway) -> None:
    page = httpx.get(f"{gateway.url}/", follow_redirects=True, trust_env=False)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-store"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    script = httpx.get(f"{gateway.url}/console/app.js", trust_env=False)
    assert "javascript" in script.headers["content-type"]
    assert script.headers["cache-control"] == "no-cache"  # asked for again, and answered with 304
    assert script.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(f"{gateway.url}/console/app.js", headers={"If-None-Match": script.headers["etag"]})
    assert again.status_code == 304
    problem(httpx.get(f"{gateway.url}/console/../app.py", trust_env=False), 404)
    problem(httpx.get(f"{gateway.url}/console/%2e%2e/app.py", trust_env=False), 404)
