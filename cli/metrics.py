"""The port at which Prometheus and Kubernetes ask a process: `/metrics`, and of flows `/livez` and `/readyz`.

Alive is a flow that closes epochs: not one whose process has an open port, nor one that gets records. What halts epochs
and is no reason to kill the process:

* Restoring a large state, or loading models: it is alive until its first epoch; give a startup probe its time.
* Brokers that are away: sinks wait for 125 s at most, then the flow stops by itself (`connectors.kafka.producer`).
* A step that is full far beyond its bound: it waits for calls, all of which end, and says so (`operators.offload`).
* The drain after SIGTERM: it is alive until the drain is over, and by HEADRACE_STALL_S longer.

What is left is a flow that hangs, and only a restart helps; HEADRACE_STALL_S is longer than all of the above.
"""

from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic
from urllib.parse import urlsplit

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from connectors.kafka.progress import Progress
from connectors.kafka.stop import Stop
from connectors.settings import Settings
from schemas.errors import HeadraceError

ROUTES = ("/metrics", "/livez", "/readyz")

_READ_S = 10.0  # of a client that says nothing: its thread ends


class Health:
    """Whether the flows of a process live, and are ready. `stall_s`: seconds without an epoch, at most."""

    def __init__(self, flows: Sequence[str], stop: Stop, *, stall_s: float) -> None:
        self.flows = {flow: Progress(flow) for flow in flows}
        self._stop = stop
        self._stall_s = stall_s

    def alive(self) -> tuple[bool, str]:
        """Whether no flow hangs, and a line about each."""
        lines = [self._alive(progress) for progress in self.flows.values()]
        return all(alive for alive, _ in lines), "".join(line for _, line in lines)

    def _alive(self, progress: Progress) -> tuple[bool, str]:
        silent_s, deadline = progress.silent_s, self._stop.deadline
        if silent_s is None:
            return True, f"{progress.flow}: no epoch yet, {progress.age_s:.1f} s after the start\n"
        last = f"{progress.flow}: last epoch {silent_s:.1f} s ago"
        if deadline is not None:
            return monotonic() < deadline + self._stall_s, f"{last}; stopping\n"
        if silent_s > self._stall_s:
            return False, f"{last}, and HEADRACE_STALL_S is {self._stall_s:g}\n"
        return True, f"{last}\n"

    def ready(self) -> tuple[bool, str]:
        """Whether all flows have closed an epoch and none is to stop, and a line about each."""
        lines = [self._ready(progress) for progress in self.flows.values()]
        return all(ready for ready, _ in lines), "".join(line for _, line in lines)

    def _ready(self, progress: Progress) -> tuple[bool, str]:
        if self._stop.requested:
            return False, f"{progress.flow}: stopping\n"
        if not progress.began:
            return False, f"{progress.flow}: no epoch is closed yet, {progress.age_s:.1f} s after the start\n"
        return True, f"{progress.flow}: last epoch {progress.silent_s or 0.0:.1f} s ago\n"


class _Handler(BaseHTTPRequestHandler):
    timeout = _READ_S
    server: "_Server"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        status, kind, body = self._found()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _found(self) -> tuple[int, str, bytes]:
        health, path = self.server.health, urlsplit(self.path).path
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            return 200, kind, encode(REGISTRY)
        if health is not None and path in ROUTES:
            fine, lines = health.alive() if path == "/livez" else health.ready()
            return 200 if fine else 503, "text/plain; charset=utf-8", lines.encode()
        served = ", ".join(ROUTES if health is not None else ROUTES[:1])
        return 404, "text/plain; charset=utf-8", f"not found; this port serves {served}\n".encode()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server names it
        """Nothing: a probe every few seconds is no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    health: Health | None = None

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that went away is no news either."""


def serve_metrics(settings: Settings, health: Health | None = None) -> None:
    """Serve until the process ends, if a port is set. Raises HeadraceError if it cannot be had."""
    if settings.metrics_port is None:
        return
    try:
        server = _Server(("", settings.metrics_port), _Handler)
    except OSError as error:
        raise HeadraceError(
            f"HEADRACE_METRICS_PORT={settings.metrics_port}: {error.strerror}; each process needs a port of its own"
        ) from error
    server.health = health
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
