"""What the gateway is measured beside: an endpoint that calls the model while its client waits, as one writes it first.

`python -m benchmarks.synchronous MODEL_URL SLOTS` prints {"url": ...}. Nothing is wrong with it but its design: it is
asynchronous, it has a pool of as many connections as the model has slots, and requests beyond them wait in order.
"""

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel


class Question(BaseModel):
    """What a client asks."""

    prompt: str


def application(model_url: str, slots: int) -> FastAPI:
    """POST /answer."""

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        pool = aiohttp.TCPConnector(limit=slots)
        patient = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=pool, timeout=patient) as app.state.model:
            yield

    app = FastAPI(lifespan=connected)

    @app.post("/answer")
    async def answer(question: Question) -> dict[str, str]:
        body = {"model": "test", "messages": [{"role": "user", "content": question.prompt}], "stream": True}
        async with app.state.model.post(f"{model_url}/chat/completions", json=body) as reply:
            lines = [line.removeprefix(b"data: ") async for line in reply.content if line.startswith(b"data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        return {"text": "".join(choice["delta"].get("content", "") for choice in choices)}

    return app


async def _main(model_url: str, slots: int) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}"}), flush=True)  # noqa: T201
        config = uvicorn.Config(application(model_url, slots), log_level="warning", http="httptools")
        await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], int(sys.argv[2])))
