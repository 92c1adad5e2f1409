"""A collector of spans: takes OTLP over HTTP, as protobuf, and keeps what it is sent."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.kafka.client import wait_for


@dataclass(frozen=True)
class Collected:
    """A span as it was sent."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: the first of its trace
    kind: str
    failed: bool
    began_ns: int
    ended_ns: int
    attributes: dict[str, object] = field(default_factory=dict)


def _value(value: AnyValue) -> object:
    name = value.WhichOneof("value")
    return None if name is None else getattr(value, name)


class Collector:
    """What was sent so far."""

    def __init__(self) -> None:
        self.spans: list[Collected] = []
        self.raw = b""
        self.paths: set[str] = set()
        self.url = ""

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            said = {each.key: _value(each.value) for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_collected(str(said["service.name"]), span) for span in scope.spans]

    def of(self, trace_id: str) -> list[Collected]:
        """The spans of one trace, in the order in which they began."""
        return sorted((each for each in self.spans if each.trace_id == trace_id), key=lambda each: each.began_ns)

    def wait_for(self, trace_id: str, *names: str) -> list[Collected]:
        """The same once there are spans of these names."""
        wait_for(f"spans {names}", lambda: set(names) <= {each.name for each in self.of(trace_id)})
        return self.of(trace_id)


def _collected(service: str, span: Wire) -> Collected:
    return Collected(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        Wire.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.status.code == Status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {each.key: _value(each.value) for each in span.attributes},
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector at a free port of this machine; `url` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
