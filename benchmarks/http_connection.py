"""One HTTP connection that costs little, so that a load of thousands measures the server and not its own client."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self, cast
from urllib.parse import SplitResult

import httptools

from schemas.errors import Retryable

OK = 200


@dataclass(frozen=True)
class Response:
    """An answer, with its body unless that was handed on as it came."""

    status: int
    body: bytes


def message(at: SplitResult, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of a request."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {at.netloc}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Reader(Protocol):
    """Takes the body of an answer of status 200 as it comes."""

    def began(self) -> None:
        """The headers are here."""

    def took(self, data: bytes) -> None:
        """A part of the body, cut anywhere."""


class Connection(asyncio.Protocol):
    """Asks one thing at a time and stays open in between."""

    def __init__(self, reader: Reader | None = None) -> None:
        self._reader = reader
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[Response] | None = None
        self._status = 0

    @classmethod
    async def open(cls, at: SplitResult, reader: Reader | None = None) -> Self:
        """Connect. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(reader), at.hostname or "127.0.0.1", at.port or 80)
        return connection

    async def ask(self, request: bytes) -> Response:
        """Send and wait for the whole answer. Raises Retryable if the connection ends before."""
        if self._transport is None or self._transport.is_closing():
            raise Retryable("the connection is closed")
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        """At once, as a client does that goes away."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio and httptools call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own, which is no subclass

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side went away, or we did."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(Retryable(f"the connection ended in the middle of an answer: {exc}"))

    def on_headers_complete(self) -> None:
        """The status is known."""
        self._status = self._parser.get_status_code()
        if self._reader is not None and self._status == OK:
            self._reader.began()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._reader is not None and self._status == OK:
            self._reader.took(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        body, self._parts = b"".join(self._parts), []
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(Response(self._status, body))
