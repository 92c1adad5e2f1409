"""`headrace gateway` and `headrace keys`, as processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from click.testing import CliRunner

from cli.keys import keys
from connectors.kafka.embedded import EmbeddedKafka
from gateway.keys import digest_of
from tests.gateway.running import RunningGateway, create_all_topics, until
from tests.headrace_process import headrace


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        create_all_topics(kafka)
        yield kafka


def test_sigterm_ends_streams_at_once_and_the_process_with_0(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    with RunningGateway(kafka.bootstrap, tmp_path) as gateway:
        job_id = gateway.ready().ask()
        with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            assert stream.status_code == 200
            assert gateway.terminate() == 0
            assert "event: end" not in stream.read().decode()  # the job goes on: the client comes back
        said = gateway.log.read_text()
        assert "shutdown exceeded" not in said  # as uvicorn says when it has cut off what did not end by itself
        assert "Traceback" not in said


def test_a_log_that_cannot_be_written_neither_breaks_requests_nor_keeps_it_from_ending(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    gateway = RunningGateway(kafka.bootstrap, tmp_path)
    gateway.log = Path("/dev/full")
    with gateway:
        for _ in range(10):
            gateway.ask(job_id=str(uuid4()))
        assert gateway.terminate() == 0


def test_sigterm_lets_whoever_waits_have_an_answer(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    with RunningGateway(kafka.bootstrap, tmp_path) as gateway:
        gateway.ready()
        host, port = gateway.url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "?", "job_id": "waited-for"})
        with socket.create_connection((host, int(port))) as waiting:
            head = (
                f"POST /v1/requests HTTP/1.1\r\nHost: {host}\r\nPrefer: wait=60\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            waiting.sendall((head + body).encode())
            until(lambda: gateway.client.get("/v1/jobs/waited-for").status_code == 200)
            assert gateway.terminate() == 0
            assert waiting.makefile("rb").readline().split()[1] == b"202"


def test_a_killed_gateway_knows_its_jobs_and_keys_when_it_is_back(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    with RunningGateway(kafka.bootstrap, tmp_path) as gateway:
        job_id = gateway.ready().post("/v1/requests", {"prompt": "One?"}, **key).json()["job_id"]
        gateway.kill()
    with RunningGateway(kafka.bootstrap, tmp_path) as gateway:
        assert gateway.ready().client.get(f"/v1/jobs/{job_id}").json()["state"] == "accepted"
        assert gateway.post("/v1/requests", {"prompt": "One?"}, **key).json()["job_id"] == job_id
        assert gateway.post("/v1/requests", {"prompt": "Two?"}, **key).status_code == 422
        told = gateway.client.get(f"/v1/jobs/{job_id}/timeline").json()["timeline"]
        assert [each["what"] for each in told] == ["submitted"]


def test_a_second_gateway_knows_what_the_first_one_has_accepted(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    with (
        RunningGateway(kafka.bootstrap, tmp_path / "one") as one,
        RunningGateway(kafka.bootstrap, tmp_path / "two") as two,
    ):
        one.ready()
        two.ready()
        for _ in range(5):  # the second one is asked at once
            assert two.client.get(f"/v1/jobs/{one.ask(job_id=str(uuid4()))}").status_code == 200


def test_without_kafka_it_starts_and_says_what_is_missing(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        bootstrap = f"127.0.0.1:{unused.getsockname()[1]}"
        with RunningGateway(bootstrap, tmp_path) as gateway:
            assert gateway.client.get("/healthz").status_code == 200
            not_ready = gateway.client.get("/readyz")
            assert not_ready.status_code == 503
            assert bootstrap in not_ready.json()["detail"]
            assert gateway.client.get("/v1/jobs").json() == {"jobs": [], "next": None}
            until(lambda: gateway.post("/v1/requests", {"prompt": "?"}).elapsed.total_seconds() < 0.5)
            refused = gateway.post("/v1/requests", {"prompt": "?"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert gateway.terminate() == 0


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return headrace("gateway", *arguments, HEADRACE_KAFKA_BOOTSTRAP="127.0.0.1:1", **variables)


def test_without_keys_it_serves_loopback_alone(tmp_path: Path) -> None:
    done = run("--host", "0.0.0.0", HEADRACE_DATA_DIR=str(tmp_path))  # noqa: S104  # which is what is refused
    assert done.returncode == 2
    assert "HEADRACE_GATEWAY_HOST=0.0.0.0" in done.stderr
    assert "headrace keys create" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HEADRACE_API_KEYS", '{"hr_mine": "acme"}', "does not begin with the SHA-256"),
        ("HEADRACE_API_KEYS_FILE", "/nonexistent/keys.json", "No such file"),
        ("HEADRACE_CORS_ORIGINS", "*", "could read everything"),
    ],
)
def test_wrong_keys_are_one_line_that_names_the_variable(tmp_path: Path, variable: str, value: str, said: str) -> None:
    done = run(HEADRACE_DATA_DIR=str(tmp_path), **{variable: value})
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert variable in line
    assert said in line
    assert "hr_mine" not in done.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("--port", port, HEADRACE_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"headrace: the gateway cannot listen at 127.0.0.1:{port}: Address already in use")


def test_a_metrics_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104  # as the metrics do
        port = str(taken.getsockname()[1])
        done = run("--port", "0", HEADRACE_DATA_DIR=str(tmp_path), HEADRACE_METRICS_PORT=port)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"headrace: HEADRACE_METRICS_PORT={port}: Address already in use; each process needs a port of its own"
    ]


def test_an_option_that_librdkafka_does_not_know_is_one_line(tmp_path: Path) -> None:
    done = run("--port", "0", HEADRACE_DATA_DIR=str(tmp_path), HEADRACE_KAFKA_OPTIONS='{"no.such": "1"}')
    assert done.returncode == 2
    assert 'HEADRACE_KAFKA_OPTIONS: No such configuration property: "no.such"' in done.stderr.splitlines()[-1]


def test_two_gateways_with_one_file_are_told_apart(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    with RunningGateway(kafka.bootstrap, tmp_path):
        done = run("--port", "0", HEADRACE_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "HEADRACE_READ_MODEL" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("way", ["stdin", "ctrl-c"])
def test_it_ends_with_whoever_started_it_and_by_ctrl_c(kafka: EmbeddedKafka, tmp_path: Path, way: str) -> None:
    arguments = ("--until-stdin-closes",) if way == "stdin" else ()
    with RunningGateway(kafka.bootstrap, tmp_path, *arguments) as gateway:
        assert gateway.process.stdin is not None
        if way == "stdin":
            gateway.process.stdin.close()
        else:
            gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(10) == 0


def test_metrics_have_their_port(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with RunningGateway(kafka.bootstrap, tmp_path, HEADRACE_METRICS_PORT=str(port)) as gateway:
        job_id = gateway.ready().ask()
        with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events"):
            metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert 'headrace_gateway_requests_total{route="/v1/requests",status="202"} 1.0' in metrics
    assert 'headrace_gateway_request_seconds_count{route="/v1/requests"} 1.0' in metrics
    assert "headrace_gateway_streams 1.0" in metrics


def test_a_key_that_was_made_opens_the_gateway(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    made = headrace("keys", "create", "acme")
    assert made.returncode == 0
    key, entry = made.stdout.splitlines()[0], json.loads(made.stdout.splitlines()[-1])
    assert entry == {digest_of(key): "acme"}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(entry))
    with RunningGateway(kafka.bootstrap, tmp_path, key=key, HEADRACE_API_KEYS_FILE=str(file)) as gateway:
        assert gateway.client.get("/v1/me").json() == {"tenant": "acme", "open": False}
        assert httpx.get(f"{gateway.url}/v1/me", trust_env=False).status_code == 401


def test_a_key_is_for_a_tenant() -> None:
    refused = CliRunner().invoke(keys, ["create", "no tenant"])
    assert refused.exit_code == 2
    assert "no tenant" in refused.output
    made = json.loads(CliRunner().invoke(keys, ["create", "*", "--json"]).stdout)
    assert made["entry"] == {digest_of(made["key"]): "*"}


def test_a_gateway_does_not_load_the_engine() -> None:
    code = "import sys, cli.gateway; print(sorted({'bytewax', 'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
