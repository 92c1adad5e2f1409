"""Spans to an OpenTelemetry collector, by OTLP over HTTP (the extra `otel`).

Guarantee: recording never blocks and never fails: spans wait in a bounded queue, which another thread sends in batches.
A collector that is out costs them, and a warning every LOG_EVERY_S. Configured by the standard variables OTEL_*.
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from connectors.tracing.port import Span

log = structlog.get_logger()

LOG_EVERY_S = 60.0
CLOSE_S = 3.0  # for the last batch; a collector answers in milliseconds

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}


class _Told(IdGenerator):
    """Gives the ids that it was told: a span's are known before it has ended, and by others."""

    def __init__(self) -> None:
        self._next = threading.local()

    def tell(self, span: Span) -> None:
        self._next.trace_id, self._next.span_id = int(span.trace.trace_id, 16), int(span.trace.span_id, 16)

    def generate_trace_id(self) -> int:
        return int(self._next.trace_id)

    def generate_span_id(self) -> int:
        return int(self._next.span_id)


class _Patient(SpanExporter):
    """Says so when spans are lost, now and then."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lost = 0
        self._logged_at = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the one thread that sends."""
        result = SpanExportResult.FAILURE
        with suppress(Exception):
            result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            if monotonic() - self._logged_at >= LOG_EVERY_S:
                self._logged_at = monotonic()
                log.warning("the collector takes no spans; they are lost until it does", lost=self._lost)
                self._lost = 0
        return result

    def shutdown(self) -> None:
        """End a call that hangs, too."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._inner.force_flush(timeout_millis)


class OtelTracer:
    """One per process. `service` is what OTEL_SERVICE_NAME replaces."""

    on = True

    def __init__(self, service: str) -> None:
        for name in ("opentelemetry", "urllib3"):  # they tell of every attempt
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._exporter = _Patient(OTLPSpanExporter())
        self._processor = BatchSpanProcessor(self._exporter)
        self._ids = _Told()
        resource = Resource.create()
        if str(resource.attributes.get("service.name")).startswith(_UNNAMED):
            resource = resource.merge(Resource({"service.name": service}))
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("headrace")

    def record(self, span: Span) -> None:
        """Begin and end it at once: `record` is called when it is over."""
        self._ids.tell(span)
        began = self._tracer.start_span(
            span.name,
            context=set_span_in_context(NonRecordingSpan(_above(span))),
            kind=_KINDS[span.kind],
            attributes=span.attributes,
            start_time=int(span.began_at * 1e9),
        )
        if span.failed is not None:
            began.set_attribute("error.type", span.failed)
            began.set_status(Status(StatusCode.ERROR))
        began.end(max(int(span.ended_at * 1e9), int(span.began_at * 1e9)))

    def close(self) -> None:
        """Send what is left for CLOSE_S; what hangs then is cut off, and has CLOSE_S to end."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            self._exporter.shutdown()  # which ends its wait for the next attempt
            closing.join(CLOSE_S)


_UNNAMED = "unknown_service"  # what the SDK says where nobody has named the service


def _above(span: Span) -> SpanContext:
    """The place of the parent; an invalid one makes the span the first of its trace."""
    if span.parent_id is None:
        return SpanContext(0, 0, is_remote=True)
    state = TraceState.from_header([span.trace.state]) if span.trace.state is not None else None
    flags = TraceFlags(span.trace.flags)
    return SpanContext(
        int(span.trace.trace_id, 16), int(span.parent_id, 16), is_remote=True, trace_flags=flags, trace_state=state
    )
