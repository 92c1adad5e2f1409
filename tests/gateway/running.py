"""A gateway as a team runs it: `headrace gateway` as a process, and HTTP around it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

from connectors.kafka.embedded import EmbeddedKafka
from schemas.results import ResultCompleted, Timings, TokenCount
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.headrace_process import PlainClient

START_S = 60.0
DEADLINE_S = 30.0

Fields = dict[str, object]


def create_all_topics(kafka: EmbeddedKafka) -> None:
    """As `headrace topics create` does on a broker that can."""
    kafka.create_topics([topic.name for topic in (*CATALOGUE, *dead_letter_topics())])


class RunningGateway:
    """`headrace gateway` while entered; started, it listens. `key`: for requests that name no other."""

    def __init__(
        self, bootstrap: str, data_dir: Path, *arguments: str, key: str | None = None, **variables: str
    ) -> None:
        port = () if "--port" in arguments else ("--port", "0")
        self._command = [sys.executable, "-m", "cli.main", "gateway", *port, *arguments]
        self._environment = os.environ | {
            "HEADRACE_KAFKA_BOOTSTRAP": bootstrap,
            "HEADRACE_DATA_DIR": str(data_dir),
            **variables,
        }
        self._key = key
        self.log = data_dir / "gateway.log"

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline() if ready else ""
        if not line.startswith("gateway: http://"):
            self.__exit__()
            raise AssertionError(self.log.read_text())
        self.url = line.split()[1].rstrip("/")
        self.client = httpx.Client(base_url=self.url, timeout=DEADLINE_S, headers=bearer(self._key), trust_env=False)
        return self

    def ready(self) -> Self:
        """Wait until it has caught up."""
        until(lambda: self.client.get("/readyz").status_code == 200)
        return self

    def post(self, path: str, fields: Fields, **headers: str) -> httpx.Response:
        """Send JSON."""
        return self.client.post(path, json=fields, headers=headers)

    def ask(self, **fields: object) -> str:
        """Submit a request that is accepted; its job."""
        answer = self.post("/v1/requests", {"prompt": "How often is the filter changed?"} | fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    def lines(self) -> list[Fields]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "client"):
            self.client.close()
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def bearer(key: str | None) -> dict[str, str]:
    """Headers that say who asks."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def until(condition: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
    """Return when it holds; fails after a deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.02)


def answer_to(bootstrap: str, job_id: str, text: str = "Every 400 hours.", tenant: str = "acme") -> None:
    """As the flow would."""
    result = ResultCompleted(
        job_id=job_id,
        tenant=tenant,
        kind="answer",
        text=text,
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=10, completion_tokens=5),
        model="test",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=0),
    )
    PlainClient(bootstrap).send("results.completed", result.encode(), key=job_id)
