"""What a whole run says on standard error: one JSON object a line, with ids, and nothing that anybody sent or hides."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from connectors.kafka.embedded import EmbeddedKafka
from tests.chaos.parts import ModelServer
from tests.gateway.running import RunningGateway, create_all_topics, until
from tests.headrace_process import Payload, PlainClient, RunningFlows, headrace
from tests.webhook_receiver import SECRET, answering, receiving

pytestmark = pytest.mark.timeout(300)

CANARY = "canary-9f1c77"
"""In every prompt, document and secret."""


@pytest.fixture
def broker() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as broker:
        create_all_topics(broker)
        yield broker


def lines_of(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def secrets(llm_url: str, data_dir: Path, bootstrap: str) -> dict[str, str]:
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": bootstrap,
        "HEADRACE_DATA_DIR": str(data_dir),
        "HEADRACE_LLM_URL": llm_url,
        "HEADRACE_LLM_MODEL": "test",
        "HEADRACE_LLM_API_KEY": f"{CANARY}-llm-key",
        "HEADRACE_QDRANT_API_KEY": f"{CANARY}-qdrant-key",
        "HEADRACE_LEDGER_PASSWORD": f"{CANARY}-password",
        "HEADRACE_WEBHOOK_SECRETS": json.dumps({"*": SECRET}),
        "HEADRACE_WEBHOOK_PRIVATE": "true",
        "HEADRACE_LOG_LEVEL": "debug",
    }


def ask(client: PlainClient, prompt: str, **fields: object) -> str:
    job_id = uuid4().hex
    client.send("requests.submitted", {"job_id": job_id, "prompt": f"{prompt} {CANARY}?"} | fields, key=job_id)
    return job_id


def upload(client: PlainClient, **fields: object) -> str:
    job_id = uuid4().hex
    client.send("documents.uploaded", {"job_id": job_id, "document_id": job_id} | fields)
    return job_id


def wait_for_ends(client: PlainClient, *jobs: str) -> None:
    def ended(found: list[Payload]) -> bool:
        over = {each["job_id"] for each in found if each["state"] in {"completed", "dead_lettered"}}
        return over >= set(jobs)

    client.read_until("jobs.status", ended)


@pytest.mark.parametrize("asked_for", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_prompt_no_text_and_no_secret_is_logged_unless_it_is_asked_for(
    broker: EmbeddedKafka, tmp_path: Path, *, asked_for: bool
) -> None:
    (tmp_path / "files").mkdir()
    client, log = PlainClient(broker.bootstrap), tmp_path / "log"
    with ModelServer(tmp_path / "calls") as llm, receiving() as receiver:
        receiver.answers = {"/refuses": answering(500)}
        variables = secrets(llm.url, tmp_path / "data", broker.bootstrap) | {
            "HEADRACE_FILE_ROOTS": str(tmp_path / "files"),
            "HEADRACE_LOG_CONTENT": str(asked_for),
        }
        broken = {
            "broken.pdf": f"%PDF-1.4 {CANARY} nonsense",
            "broken.docx": f"PK\x03\x04{CANARY}",
            "broken.eml": f"Subject: {CANARY}\nContent-Type: multipart/mixed; boundary={CANARY}\n\n--{CANARY}\n",
        }
        for name, text in broken.items():
            (tmp_path / "files" / name).write_text(text)
        with RunningFlows("ingest", "answer", "search", "usage", "webhooks", log=log, **variables) as flows:
            documents = [upload(client, uri=(tmp_path / "files" / name).as_uri()) for name in broken]
            documents += [
                upload(client, text=f"The race is 310 metres long. {CANARY}"),
                upload(client, text=CANARY, sha256="0" * 64),
                upload(client, uri=f"s3://key:{CANARY}@bucket/{CANARY}"),
                upload(client, uri=f"https://user:{CANARY}@example.invalid/doc?token={CANARY}"),
            ]
            hook = receiver.url(f"/refuses?token={CANARY}", "127.0.0.1")
            requests = [
                ask(client, "How long is the race?", callback_url=hook),
                ask(client, "FAULT:400"),  # whose answer quotes the prompt
                ask(client, "FAULT:malformed FAULT:error", deadline_at="2020-01-01T00:00:00Z"),
                ask(client, "FAULT:nameless TOOL:search", tools=[{"name": "search"}], kind="generate"),
                ask(client, "TOOL:search", tools=[{"name": "search", "description": CANARY}]),
            ]
            client.send("requests.submitted", f'{{"prompt": "{CANARY}", '.encode())
            client.send("requests.submitted", {"prompt": [CANARY], CANARY: CANARY})
            client.send("budgets.config", {"tenant": "default", "windows": [{"seconds": 1, "tokens": CANARY}]})
            wait_for_ends(client, *documents, *requests[:3], requests[4])
            receiver.wait_for(1, "/refuses")
            assert flows.terminate() == 0
        with RunningGateway(broker.bootstrap, tmp_path / "gateway", HEADRACE_LOG_LEVEL="debug") as gateway:
            gateway.ready()
            gateway.ask(prompt=f"{CANARY}?")
            gateway.post("/v1/requests", {"prompt": [CANARY]})
            gateway.client.post("/v1/requests", content=f'{{"{CANARY}": '.encode())
            gateway.client.get(f"/v1/jobs/none?key={CANARY}", headers={"X-API-Key": CANARY})
            gateway.client.post("/v1/documents", files={"file": (f"{CANARY}.txt", CANARY.encode())})
            assert gateway.terminate() == 0
            said = lines_of(gateway.log)
    assert [line for line in said if CANARY in json.dumps(line)] == []
    lines = lines_of(log)
    quoted = [line for line in lines if CANARY in json.dumps(line)]
    assert {(line["event"], line["level"]) for line in quoted} == ({("call", "debug")} if asked_for else set())
    if asked_for:
        line = next(line for line in quoted if line["job_id"] == requests[0])
        assert (line["tenant"], line["step"]) == ("default", "answer.infer")
    assert SECRET.removeprefix("whsec_") not in log.read_text()


def test_what_cannot_be_reached_is_told_without_its_password(broker: EmbeddedKafka, tmp_path: Path) -> None:
    client = PlainClient(broker.bootstrap)
    with ModelServer(tmp_path / "calls") as llm:
        variables = secrets(llm.url, tmp_path / "data", broker.bootstrap)
        variables["HEADRACE_LEDGER"] = f"postgresql://mill:{CANARY}@127.0.0.1:1/mill"
        variables["HEADRACE_DRAIN_S"] = "1"
        log = tmp_path / "log"
        with RunningFlows("answer", log=log, **variables) as flows:
            ask(client, "Why?", kind="generate")
            until(lambda: "circuit opened" in log.read_text())
            assert flows.terminate() == 0
    assert [line for line in lines_of(log) if CANARY in json.dumps(line)] == []
    options = {"sasl.mechanism": "PLAIN", "security.protocol": "SASL_PLAINTEXT", "sasl.username": "mill"}
    named = variables | {"HEADRACE_KAFKA_OPTIONS": json.dumps(options | {"sasl.password": CANARY})}
    refused = headrace("run", "usage", **named)
    assert refused.returncode == 1
    assert CANARY not in refused.stdout + refused.stderr


LIBRARIES = """
import logging, threading, warnings
from cli.logs import configure_logs
configure_logs("debug")
logging.getLogger("aiohttp.access").info("quiet")
logging.getLogger("lib").warning("first line\\ncanary-9f1c77")
try:
    raise ValueError("canary-9f1c77")
except ValueError:
    logging.getLogger("lib").exception("it failed")
warnings.warn("old", DeprecationWarning, stacklevel=1)
def fail(): raise ValueError("canary-9f1c77")
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
fail()
"""


def test_libraries_warnings_and_uncaught_exceptions_are_lines_of_json_without_what_they_quote() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", LIBRARIES], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert CANARY not in done.stderr
    assert [(line["event"], line.get("logger")) for line in lines[:2]] == [("first line", "lib"), ("it failed", "lib")]
    assert (lines[1]["error_type"], len(lines[1]["at"])) == ("ValueError", 1)
    assert lines[2]["logger"] == "py.warnings"
    assert [line["event"] for line in lines[3:]] == ["unexpected exception"] * 2
    assert lines[3]["thread"] == "worker"
    assert done.returncode == 1
