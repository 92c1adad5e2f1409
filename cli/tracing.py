"""Whether spans are recorded: where OpenTelemetry's own variables name a collector."""

import os
from collections.abc import Mapping

import structlog

from connectors.tracing.off import NoTracing
from connectors.tracing.port import Tracer

log = structlog.get_logger()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def tracer_for(service: str, variables: Mapping[str, str] = os.environ) -> Tracer:
    """The tracer of this process, named `service` unless OTEL_SERVICE_NAME says otherwise."""
    off = variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or variables.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(variables.get(name) for name in ENDPOINTS):
        return NoTracing()
    try:
        from connectors.tracing.otel import OtelTracer
    except ImportError:
        log.warning("no spans are recorded: a collector is named, and OpenTelemetry is not installed: headrace[otel]")
        return NoTracing()
    protocol = variables.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or variables.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in {None, "", "http/protobuf"}:
        log.warning("spans are sent as http/protobuf, whatever OTEL_EXPORTER_OTLP_PROTOCOL says", protocol=protocol)
    return OtelTracer(service)
