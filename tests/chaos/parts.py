"""The parts of a scenario: flows and a model server as processes, and a ledger to look into."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

from connectors.kafka.topics import group_lag
from connectors.ledger.port import JobRecord
from connectors.ledger.postgres import PostgresStore
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from tests.chaos.oracle import Call, read_calls
from tests.headrace_process import Payload, PlainClient
from tests.kafka.client import committed, read, values, wait_for, write

ROOT = Path(__file__).parents[2]
START_S = 120.0
END_S = 120.0
PARTITIONS = 4
REQUESTS = "requests.submitted"
RESULTS = "results.completed"
DEAD_LETTERS = "requests.submitted.dlq"
CAPACITY = 16  # calls in flight


class Flows:
    """`headrace run`, with the victim's embedder, while entered; every line it says is kept with its time."""

    def __init__(self, *names: str, **variables: str) -> None:
        self._names = names
        self._environment = os.environ | variables

    def __enter__(self) -> Self:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.victim", *self._names],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # a pipe, which no full disk can stop
            text=True,
            cwd=ROOT,
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def running(self) -> Self:
        """Once all is built."""
        wait_for(
            "start",
            lambda: self.process.poll() is not None or any(x.startswith("running:") for x in self.said),
            START_S,
        )
        assert self.process.poll() is None, self.text
        return self

    def logged(self, event: str, **fields: object) -> list[dict[str, object]]:
        """Log lines of that event and with those fields, so far."""
        lines = [json.loads(line) for line in list(self.said) if line.startswith("{")]
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    @property
    def text(self) -> str:
        """All that it said."""
        return "\n".join(self.said)

    @property
    def last_words(self) -> str:
        """The one line with which the command told why it failed."""
        (line,) = (line for line in self.said if line.startswith("headrace: "))
        return line

    def ended(self, timeout_s: float = END_S) -> int:
        """Its exit code, once it has ended by itself and all that it said is heard."""
        code = self.process.wait(timeout_s)
        self._thread.join()
        return code

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.send(signal.SIGTERM)
        return self.ended()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.process.kill()  # a stopped process, too
        self.ended()
        if kind is not None:
            sys.stderr.write(f"{self.text}\n")  # pytest shows it with the failure
        if self.process.stdout is not None:
            self.process.stdout.close()


class ModelServer:
    """The test's LLM server as a process, with its record of calls."""

    def __init__(self, record: Path, *, latency_s: tuple[float, float] = (0.02, 0.2)) -> None:
        self._record = record
        low, high = latency_s
        options = ["--record", str(record), "--distinct", "--latency-s", str(low), str(high)]
        self._command = [sys.executable, "-m", "tests.llm_server", *options]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self.url: str = json.loads(self._process.stdout.readline())["url"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def put(self, what: str, **fields: object) -> None:
        """`plan` or `outage`."""
        address = f"{self.url.removesuffix('/v1')}/{what}"
        request = urllib.request.Request(address, json.dumps(fields).encode(), method="PUT")  # noqa: S310  # our own
        with urllib.request.urlopen(request):  # noqa: S310  # same
            pass

    def health(self) -> object:
        """What it says of itself."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/health") as response:  # noqa: S310  # our own
            return json.loads(response.read())["status"]

    def calls(self) -> dict[str, list[Call]]:
        """By job."""
        return read_calls(self._record)

    def all_calls(self) -> list[Call]:
        """In the order in which they began."""
        return sorted((call for calls in self.calls().values() for call in calls), key=lambda call: call.began_at)

    def called_twice(self) -> set[str]:
        """Jobs whose provider may send two bills."""
        return {job_id for job_id, calls in self.calls().items() if sum(call.spent for call in calls) > 1}


def look_up(place: str, job_ids: Iterable[str]) -> dict[str, JobRecord]:
    """What a ledger holds of these jobs."""

    async def find() -> list[JobRecord | None]:
        store = PostgresStore(place) if place.startswith("postgresql://") else SqliteStore(Path(place))
        ledger = SqlLedger(store, f"oracle-{time.time()}")
        try:
            return [await ledger.find(job_id) for job_id in sorted(job_ids)]
        finally:
            await ledger.close()

    return {record.job_id: record for record in asyncio.run(find()) if record is not None}


@dataclass
class Scene:
    """The topics, emptied, and what a flow needs to know to use them."""

    bootstrap: str
    directory: Path
    client: PlainClient
    prefix: str = field(default_factory=lambda: f"scene-{uuid4().hex[:8]}")

    def flows(self, llm: ModelServer, *also: str, process: str = "a", **variables: str) -> Flows:
        """An answer flow, and others besides; `process` names its recovery directory, data and consumer group."""
        settings = {
            "HEADRACE_KAFKA_BOOTSTRAP": self.bootstrap,
            "HEADRACE_DATA_DIR": str(self.directory / process),
            "HEADRACE_GROUP_PREFIX": self.group_prefix(process),
            "HEADRACE_LLM_URL": llm.url,
            "HEADRACE_LLM_MODEL": "test",
            "HEADRACE_INFER_CAPACITY": str(CAPACITY),
        }
        return Flows("answer", *also, **settings | variables)

    def group_prefix(self, process: str = "a") -> str:
        return f"{self.prefix}-{process}"

    def submit(self, jobs: int, prompt: str = "What is it?") -> list[str]:
        """Requests that no other test makes; their job ids."""
        ids = [f"{self.prefix}-{uuid4().hex[:8]}" for _ in range(jobs)]
        for job_id in ids:
            self.client.send(REQUESTS, {"job_id": job_id, "kind": "generate", "prompt": prompt}, key=job_id)
        return ids

    def submit_in_order(self, *requests: Payload | bytes) -> list[int]:
        """All to one partition; their offsets."""
        encoded = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in requests]
        write(self.bootstrap, REQUESTS, encoded, key=b"ordered", partition=0)
        at = {message.value(): message.offset() for message in read(self.bootstrap, REQUESTS)}
        return [at[value] or 0 for value in encoded]

    def committed(self, process: str = "a") -> int:
        """The group's offset in the partition of `submit_in_order`; 0 if there is none."""
        return committed(self.bootstrap, f"{self.group_prefix(process)}.answer", REQUESTS).get(0, 0)

    def has_no_lag(self, process: str) -> bool:
        """The process's group is at the end."""
        return not any(group_lag(self.bootstrap, f"{self.group_prefix(process)}.answer", [REQUESTS]).values())

    def results(self) -> dict[str, set[bytes]]:
        """The distinct results of each job."""
        found: dict[str, set[bytes]] = {}
        for value in values(self.bootstrap, RESULTS):
            found.setdefault(json.loads(value)["job_id"], set()).add(value)
        return found

    def ambiguous(self, job_ids: Collection[str], ledger: str | None = None) -> set[str]:
        """Those of which the ledger says that a call may have been billed in vain; every job must be there."""
        records = look_up(ledger or str(self.directory / "a" / "ledger.sqlite"), job_ids)
        return {job_id for job_id in job_ids if records[job_id].ambiguities}

    def letters(self) -> list[Payload]:
        return [json.loads(value) for value in values(self.bootstrap, DEAD_LETTERS)]

    def wait_for_results(self, job_ids: Collection[str]) -> dict[str, set[bytes]]:
        """All results, once these jobs have one."""
        missing = set(job_ids)

        def none_missing(found: list[Payload]) -> bool:
            missing.discard(str(found[-1]["job_id"]))
            return not missing

        self.client.read_until(RESULTS, none_missing)
        return self.results()
