"""Connections that do not come to the point."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from gateway import bounded_http
from gateway.bounded_http import BoundedHttp


async def hello(_request: object) -> PlainTextResponse:
    await asyncio.sleep(0.5)
    return PlainTextResponse("hello")


async def echo(web_socket: WebSocket) -> None:
    await web_socket.accept()
    await asyncio.sleep(0.5)
    await web_socket.send_text("hello")
    await web_socket.close()


def test_a_connection_that_takes_nothing_is_closed_and_what_wrote_to_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "TAKES_S", 0.3)
    ended = asyncio.Event()
    written = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal written
        try:
            while True:
                yield b"x" * 16_384
                written += 16_384
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def stream(_request: object) -> StreamingResponse:
        return StreamingResponse(endless())

    app = Starlette(routes=[Route("/", stream)])
    config = uvicorn.Config(app, port=0, http=BoundedHttp, lifespan="off", log_config=None, log_level="critical")

    async def run() -> None:
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        with socket.create_connection(("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])) as deaf:
            deaf.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 10)
        server.should_exit = True
        await serving

    asyncio.run(run())
    assert written < 32 * 1024 * 1024  # what the two ends of a socket hold


def test_a_connection_that_sends_nothing_is_closed_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEADERS_S", 0.2)
    app = Starlette(routes=[Route("/", hello), WebSocketRoute("/ws", echo)])
    config = uvicorn.Config(
        app, port=0, http=BoundedHttp, ws="websockets-sansio", lifespan="off", log_config=None, log_level="error"
    )

    async def run() -> None:
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        began = time.monotonic()
        silent, mouth = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(silent.read(), 10) == b""
        assert time.monotonic() - began < 5
        asking, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(asking.read(), 10)).endswith(b"hello")
        async with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as speaking:
            assert await asyncio.wait_for(speaking.recv(), 10) == "hello"
        for each in (mouth, writer):
            each.close()
            await each.wait_closed()
        server.should_exit = True
        await serving

    asyncio.run(run())
