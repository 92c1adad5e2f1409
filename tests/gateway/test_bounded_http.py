"""Connections that do not come to the point."""

import asyncio
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from gateway import bounded_http
from gateway.bounded_http import BoundedHttp


async def hello(_request: object) -> PlainTextResponse:
    await asyncio.sleep(0.5)
    return PlainTextResponse("hello")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await asyncio.sleep(0.5)
    await socket.send_text("hello")
    await socket.close()


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
        async with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
            assert await asyncio.wait_for(socket.recv(), 10) == "hello"
        for each in (mouth, writer):
            each.close()
            await each.wait_closed()
        server.should_exit = True
        await serving

    asyncio.run(run())
