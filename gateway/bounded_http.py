"""HTTP/1.1 by httptools, whose parser keeps whatever comes before a body, however long it is: here it has a limit.

Without it, one connection that sends an endless header fills the memory, and an endless URL keeps the event loop busy.
A connection that sends nothing is closed.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES = 65_536
"""Of request line, headers, trailers and the frames of chunks, beside as much as the body has so far."""

HEADERS_S = 30.0
"""For the first request's headers, on a new connection; further ones have uvicorn's keep-alive."""

_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """One connection. What one read has brought, 256 kB at most, is parsed before it is judged."""

    _other_bytes = 0  # of the request that is being read: what is no body
    _body_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """As uvicorn's."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEADERS_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._relax()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """As uvicorn's."""
        self._relax()
        super().on_headers_complete()

    def _relax(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def data_received(self, data: bytes) -> None:
        """Count, parse, judge."""
        self._other_bytes += len(data)
        super().data_received(data)
        if self._other_bytes > MOST_BYTES + self._body_bytes and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        """As uvicorn's."""
        self._other_bytes -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's."""
        self._other_bytes = self._body_bytes = 0
        super().on_message_complete()
