"""A receiver of callbacks: a real server on loopback that keeps what it was sent, and answers as a test wants."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks import Webhook

from connectors.event_loop import EventLoop
from connectors.public_address import LookUp, PublicAddresses

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cywgbm9ib2R5IGVsc2U="
OTHER_SECRET = "whsec_" + "YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3RzLCBzdXJl"
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Posted:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The body, if the signature is right: as a receiver checks it."""
        body: dict[str, Any] = Webhook(secret).verify(self.body, dict(self.headers))
        return body


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def taken(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


def answering(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One after the other, the last one for ever."""
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


@dataclass
class Receiver:
    """Its `answers`: by path; others are taken."""

    answers: dict[str, Answer] = field(default_factory=dict)
    posted: list[Posted] = field(default_factory=list)
    port: int = 0

    def url(self, path: str = "/hook", host: str = "hooks.example.org") -> str:
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.posted.append(Posted(request.path, dict(request.headers), await request.read()))
        return await self.answers.get(request.path, taken)(request)

    def to(self, path: str) -> list[Posted]:
        return [each for each in self.posted if each.path == path]

    def wait_for(self, count: int, path: str = "/hook") -> list[Posted]:
        """So many posts, at least."""
        until(lambda: len(self.to(path)) >= count, f"{count} posts to {path}")
        return self.to(path)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fails after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S:.0f} s"
        time.sleep(0.01)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that runs meanwhile."""
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    server = TestServer(application)
    with EventLoop() as loop:
        loop.run(server.start_server(shutdown_timeout=0.1), timeout_s=10)
        assert server.port is not None
        receiver.port = server.port
        try:
            yield receiver
        finally:
            loop.run(server.close(), timeout_s=10)


def names(*answers: Sequence[str]) -> LookUp:
    """A name server whose answers change: the next one at each question, the last one for ever."""
    left = list(answers)

    async def look_up(_host: str) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return look_up


def on_loopback(look_up: LookUp | None = None) -> PublicAddresses:
    """Every name is this machine, and this machine may be connected to."""
    return PublicAddresses([IPv4Network("127.0.0.1/32")], look_up=look_up or names(["127.0.0.1"]))
