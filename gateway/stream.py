"""What a watcher of a job is told, in order and resumable: the same over server-sent events and WebSockets.

Guarantee: every status, every piece of the text that counts and the result are told once each, in the order of their
topics, across disconnects and gateways, as long as the client comes back with the last id that it has seen. `end` is
last, and told only if the job has ended.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.evidence import JobRow
from gateway.hub import Hub, StreamEnds, TooSlow
from gateway.read_model import ReadModel
from gateway.told import Change, Position
from schemas.event import utc_now
from schemas.explanation import Standing

HEARTBEAT_S = 15.0
"""Proxies give up on what is silent for 30 to 60 s."""
GRACE_S = 2.0
"""How long an end waits for what comes from other topics, such as the last piece of the text; longer by as much as the
projection is behind."""
LONG_AGO_S = 60.0
"""A job that ended that long ago, by the clocks of flows, has nothing more to come; far above what clocks differ by."""
APPEAR_S = 0.5
_PIECE_BYTES = 16 * 1024
_NORMAL, _RESTARTS, _TRY_LATER = 1000, 1012, 1013  # WebSocket close codes


@dataclass(frozen=True)
class Said:
    """One message to a client; `data` is JSON."""

    id: str
    event: str  # `status`, `delta`, `result` or `end`
    data: bytes

    @property
    def frame(self) -> bytes:
        """As a server-sent event; JSON has no line breaks."""
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self.event.encode(), self.data)

    @property
    def message(self) -> str:
        """As a WebSocket message."""
        return f'{{"id":"{self.id}","event":"{self.event}","data":{self.data.decode()}}}'


class _Telling:
    """One watcher's place in a job's story."""

    def __init__(self, hub: Hub, job_id: str, after: Position) -> None:
        self.over = False
        self._hub = hub
        self._job_id = job_id
        self._position = after
        self._state = Standing.ACCEPTED
        self._ends_at: float | None = None  # by the monotonic clock: the job has ended, and something may be missing

    @property
    def wait_s(self) -> float:
        """How long to wait for changes."""
        return HEARTBEAT_S if self._ends_at is None else min(HEARTBEAT_S, max(self._ends_at - time.monotonic(), 0.0))

    def take(self, changes: Iterable[Change]) -> list[Said]:
        """What is new in them, and the end if it has come."""
        said: list[Said] = []
        for change in changes:
            for told in change.told:
                if not self._position.has(told):
                    self._position = self._position.past(told)
                    said.append(Said(str(self._position), told.lane, told.data))
            self._note_end(change)
            if change.settled:
                break
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            self.over = True
            data = json.dumps({"job_id": self._job_id, "state": self._state}).encode()
            said.append(Said(str(self._position), "end", data))
        return said

    def _note_end(self, change: Change) -> None:
        self._state = change.state
        if not change.state.ended:
            self._ends_at = None  # if it had ended, it was redriven
        elif change.settled or (utc_now() - change.updated_at).total_seconds() > LONG_AGO_S:
            self._ends_at = time.monotonic()
        elif self._ends_at is None:
            behind_s = min(max(self._hub.behind_s, 0.0), LONG_AGO_S)  # clocks may differ
            self._ends_at = time.monotonic() + GRACE_S + behind_s


async def told(read_model: ReadModel, hub: Hub, job_id: str, after: Position) -> AsyncGenerator[Sequence[Said], None]:
    """What has happened since `after`, then what happens, until the job ends; nothing, once per HEARTBEAT_S of silence.

    Raises StreamEnds if the watcher has to come back with its position.
    """
    telling = _Telling(hub, job_id, after)
    with hub.watch(job_id) as watcher:
        so_far = await asyncio.to_thread(read_model.watched, job_id, after)
        changes: Sequence[Change] = () if so_far is None else (so_far,)
        while True:
            said = telling.take(changes)
            if said or not changes:
                yield said
            if telling.over:
                return
            changes = await watcher.changes(telling.wait_s)


def sse_response(read_model: ReadModel, hub: Hub, job_id: str, after: Position) -> StreamingResponse:
    """The job as server-sent events; it is known. A stream that breaks off without `end` is to be resumed."""

    async def frames() -> AsyncIterator[bytes]:
        with suppress(StreamEnds):
            async for batch in told(read_model, hub, job_id, after):
                for written in _written(batch):
                    yield written

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold it back
    return StreamingResponse(frames(), media_type="text/event-stream", headers=headers)


def _written(batch: Sequence[Said]) -> Iterator[bytes]:
    """The events as text, or a sign of life: in pieces, since a slow client's connection holds what is written."""
    if not batch:
        yield b": keep-alive\n\n"
    piece = bytearray()
    for said in batch:
        piece += said.frame
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


async def serve_websocket(websocket: WebSocket, read_model: ReadModel, hub: Hub, job_id: str, after: Position) -> None:
    """The job as messages, over a WebSocket that was accepted; returns when it is closed.

    The server's own pings are the heartbeat.
    """
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            await _gone(websocket)
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        await _speak(websocket, read_model, hub, job_id, after)
        tasks.cancel_scope.cancel()


async def _gone(websocket: WebSocket) -> None:
    """Return when the client has left; what it says is not for us."""
    with suppress(WebSocketDisconnect, RuntimeError):
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass


async def _speak(websocket: WebSocket, read_model: ReadModel, hub: Hub, job_id: str, after: Position) -> None:
    code = _NORMAL
    with suppress(WebSocketDisconnect, RuntimeError):
        try:
            async for batch in told(read_model, hub, job_id, after):
                for said in batch:
                    await websocket.send_text(said.message)
        except TooSlow:
            code = _TRY_LATER
        except StreamEnds:
            code = _RESTARTS
        await websocket.close(code)


async def appears(read_model: ReadModel, hub: Hub, job_id: str, timeout_s: float = APPEAR_S) -> JobRow | None:
    """The job as soon as it is known; None if it is not within `timeout_s` seconds."""
    return await _until(read_model, hub, job_id, timeout_s, ended=False)


async def wait_for_end(read_model: ReadModel, hub: Hub, job_id: str, timeout_s: float) -> JobRow | None:
    """The job when it has ended and its result is there; None if it has not within `timeout_s` seconds."""
    return await _until(read_model, hub, job_id, timeout_s, ended=True)


async def _until(read_model: ReadModel, hub: Hub, job_id: str, timeout_s: float, *, ended: bool) -> JobRow | None:
    until = time.monotonic() + timeout_s
    with hub.watch(job_id) as watcher, suppress(StreamEnds):
        row = read_model.job(job_id)
        is_so = row is not None and (not ended or (row.state.ended and read_model.ended(job_id)))
        while not is_so and (left_s := until - time.monotonic()) > 0:
            changes = await watcher.changes(left_s)
            is_so = any(change.ended or not ended for change in changes)
        return read_model.job(job_id) if is_so else None
    return None
