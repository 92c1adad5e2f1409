"""A client of the gateway that trusts nothing: it watches a job and counts what was not told, or told twice."""

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import SplitResult

from benchmarks.http_connection import Connection, message
from schemas.errors import Retryable

STATUSES = 2  # of each job of the streams' phase: it runs, it is completed
_AGAIN_S = 0.2  # until a refused stream is asked for again
_BACK_S = 0.1  # until one that was cut is


@dataclass(frozen=True)
class Client:
    """Where the gateway is, and who asks."""

    at: SplitResult
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {"Authorization": f"Bearer {self.key}"}

    def submission(self, text: str) -> bytes:
        """A request that only infers."""
        body = json.dumps({"kind": "generate", "prompt": text}).encode()
        return message(self.at, "POST", "/v1/requests", self.headers, body)

    def watching(self, job_id: str, last_id: str) -> bytes:
        """A job's stream, from where it was left."""
        resumed = {"Last-Event-ID": last_id} if last_id else {}
        return message(self.at, "GET", f"/v1/jobs/{job_id}/events", {**self.headers, **resumed})


class Watch:
    """One job's stream, resumed wherever it was cut; every event is counted and checked as it comes.

    leave_at: the delta after which it goes away once and comes back.
    """

    def __init__(self, client: Client, job_id: str, leave_at: int = -1) -> None:
        self._client = client
        self._job_id = job_id
        self._leave_at = leave_at
        self._connection: Connection | None = None
        self._rest = b""
        self._last_id = ""
        self._next = 0
        self._whole = False  # the delta marked as the last came
        self._statuses = 0
        self._results = 0
        self._repeated = 0
        self._gaps = 0
        self._left = False
        self._open_since = 0.0
        self.opened = asyncio.Event()
        self.state: str | None = None  # as the stream's end says it
        self.events = 0
        self.connections = 0
        self.refusals: list[str] = []  # what it was told in place of a stream that ends
        self.latencies_s: list[float] = []  # of deltas produced while it was connected

    async def follow(self) -> None:
        """Until the stream says that it ends."""
        while self.state is None:
            try:
                self._rest = b""
                self._connection = await Connection.open(self._client.at, self)
                answer = await self._connection.ask(self._client.watching(self._job_id, self._last_id))
            except (OSError, Retryable):
                await asyncio.sleep(_BACK_S)
                continue
            finally:
                if self._connection is not None:
                    self._connection.close()
            if self.state is None:
                self.refusals.append(f"{answer.status} {answer.body.decode()[:500]}")
                await asyncio.sleep(_AGAIN_S)

    def began(self) -> None:
        """The stream is open."""
        self.connections += 1
        self._open_since = time.time()
        self._left = False
        self.opened.set()

    def took(self, data: bytes) -> None:
        """Bytes of events."""
        if self._left:
            return
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):  # keep-alive
                continue
            fields = dict(line.partition(b": ")[::2] for line in event.split(b"\n"))
            self._told(fields[b"event"], json.loads(fields[b"data"]))
            self._last_id = fields.get(b"id", b"").decode() or self._last_id
            if 0 <= self._leave_at == self._next - 1 and self._connection is not None:
                self._leave_at, self._left = -1, True  # what else had come is lost with the connection
                self._connection.close()
                return

    def _told(self, event: bytes, data: dict[str, object]) -> None:
        self.events += 1
        match event:
            case b"delta":
                self._check(data)
            case b"status":
                self._statuses += 1
            case b"result":
                self._results += 1
            case b"end":
                self.state = str(data["state"])

    def _check(self, delta: dict[str, object]) -> None:
        written_at = datetime.fromisoformat(str(delta["written_at"])).timestamp()
        if written_at > self._open_since:
            self.latencies_s.append(time.time() - written_at)
        number = int(str(delta["number"]))
        self._repeated += number < self._next
        self._gaps += max(number - self._next, 0)
        self._next = max(number + 1, self._next)
        self._whole = self._whole or delta["last"] is True

    @property
    def lost(self) -> int:
        """Events that were produced and not told, as far as the others show."""
        rest = (not self._whole) + (self._results < 1) + (self.state is None)
        return self._gaps + rest + max(STATUSES - self._statuses, 0)

    @property
    def repeated(self) -> int:
        """Events told more than once."""
        return self._repeated + max(self._results - 1, 0) + max(self._statuses - STATUSES, 0)
