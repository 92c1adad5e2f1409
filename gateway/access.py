"""Around every request: one line in the log, metrics, headers for browsers, and who may come in at all.

A gateway without keys trusts whoever reaches it, and only loopback does. A web page that a user of that machine looks
at does too, so what a browser sends for another site's page is refused: by `Origin`, and by `Host` where that site's
name was made to lead here.
"""

import ipaddress
import time
import traceback
from collections.abc import Collection
from urllib.parse import urlsplit

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import Problem, path_of, problem_of

log = structlog.get_logger()

_REQUESTS = Counter("headrace_gateway_requests", "HTTP requests, by route and status.", ["route", "status"])
_SECONDS = Histogram(
    "headrace_gateway_request_seconds",
    "Time until the end of the response, streams left out.",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120),
)
_STREAMS = Gauge("headrace_gateway_streams", "Streams of jobs that are open: SSE and WebSocket.")

UPLOADS = "/v1/documents"
"""The only path whose bodies may be larger than JSON is."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/console", "/"})
_CLIENT_GONE = 499  # as nginx calls it
_SITE = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)


class Access:
    """The outermost middleware."""

    def __init__(
        self, app: ASGIApp, *, is_open: bool, cors_origins: Collection[str], max_body_bytes: int, max_upload_bytes: int
    ) -> None:
        self._app = app
        self._is_open = is_open
        self._cors_origins = frozenset(cors_origins)
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, and tell of it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        answer = _Answer(scope, send)
        is_stream = scope["type"] == "websocket" or scope["path"].endswith("/events")
        if is_stream:
            _STREAMS.inc()
        try:
            problem = self._refusal(scope) if self._is_open else None
            if problem is None:
                await self._app(scope, self._bounded(scope, receive), answer.send)
            else:
                await _refuse(problem, scope, receive, answer)
        except ClientDisconnect:
            answer.status = answer.status or _CLIENT_GONE
        except Exception as error:  # noqa: BLE001  # a bug; its message may hold what was sent
            at = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
            log.error("request failed", error_type=type(error).__name__, at=at)  # noqa: TRY400  # no message of its own
            if answer.status == 0:
                await _refuse(problem_of(error), scope, receive, answer)
        finally:
            if is_stream:
                _STREAMS.dec()
            _tell(scope, answer.status, time.monotonic() - began, is_stream=is_stream)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body, read no further than its limit. Its reader gets an HTTPException, which frameworks let pass."""
        if scope["type"] != "http":
            return receive
        most = self._max_upload_bytes if scope["path"] == UPLOADS else self._max_body_bytes
        declared = Headers(scope=scope).get("content-length", "")
        too_large = HTTPException(413, f"the body has more than {most} bytes", {"Connection": "close"})
        left = most

        async def bounded() -> Message:
            nonlocal left
            if declared.isdigit() and (len(declared) > len(str(most)) or int(declared) > most):
                raise too_large
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise too_large
            return message

        return bounded

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_loopback(_name_in(f"//{host}")):
            return Problem(
                403, "host", "without API keys the gateway answers to names of this machine alone: localhost, 127.0.0.1"
            )
        origin = headers.get("origin")
        safe = scope["type"] == "http" and scope["method"] in _SAFE_METHODS
        if safe or origin is None or origin in self._cors_origins:
            return None
        if origin.partition("://")[2] == host:
            return None
        return Problem(
            403, "origin", "a page of another site may not do that; HEADRACE_CORS_ORIGINS lists those that may"
        )


class _Answer:
    """Watches what is sent, and adds headers to it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status = 0
        self._send = send
        self._is_page = scope["path"].startswith("/console")
        self._is_index = self._is_page and scope["path"].rsplit("/", 1)[-1] in {"", "index.html", "console"}

    async def send(self, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.http.response.start"}:
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Content-Security-Policy"] = _SITE
            headers["Referrer-Policy"] = "no-referrer"
            if self._is_page:
                headers["Cache-Control"] = "no-store" if self._is_index else "no-cache"
            else:
                headers.setdefault("Cache-Control", "no-store")  # a tenant's data is in no shared cache
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.close" and self.status == 0:
            self.status = 403
        await self._send(message)


async def _refuse(problem: Problem, scope: Scope, receive: Receive, answer: _Answer) -> None:
    if scope["type"] == "http":
        await problem.response(path_of(HTTPConnection(scope)))(scope, receive, answer.send)
    else:
        await answer.send({"type": "websocket.close", "code": 1008, "reason": problem.slug})


def is_loopback(host: str | None) -> bool:
    """Whether that name or address is this machine's own."""
    if host is None:
        return False
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _tell(scope: Scope, status: int, seconds: float, *, is_stream: bool) -> None:
    route = _route(scope)
    _REQUESTS.labels(route, str(status)).inc()
    if not is_stream:
        _SECONDS.labels(route).observe(seconds)
    say = log.debug if is_stream or route in _QUIET else log.info
    say(
        "request",
        method=scope.get("method", "WEBSOCKET"),
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
        tenant=scope.get("headrace.tenant"),
        job_id=scope.get("headrace.job_id"),
        trace_id=scope.get("headrace.trace_id"),
    )


def _route(scope: Scope) -> str:
    """The template of the path, so that there are few; a nested router's lacks the prefix of the outer one."""
    path: str = scope["path"]
    template: str | None = getattr(scope.get("route"), "path_format", None)
    if template is None:
        return "/console" if path.startswith("/console") else "other"
    return f"/v1{template}" if path.startswith("/v1/") and not template.startswith("/v1/") else template
