"""Spans to a collector, and to one that is not there."""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from cli.tracing import tracer_for
from connectors.tracing.off import NoTracing
from connectors.tracing.otel import CLOSE_S, OtelTracer
from connectors.tracing.port import CURRENT, Span, Tracer, outgoing_call
from schemas.trace import Trace
from tests.otlp_collector import Collector, collecting

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
ROOT = Span("root", TRACE, None, 1_700_000_000.0, 1_700_000_001.5, "consumer", {"headrace.job_id": "q-1", "n": 3})


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


@pytest.fixture(autouse=True)
def loud_again() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "urllib3")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_spans_arrive_with_the_ids_times_and_attributes_that_they_were_recorded_with(collector: Collector) -> None:
    tracer = OtelTracer("headrace")
    tracer.record(ROOT)
    tracer.record(Span("child", TRACE.child("00f067aa0ba902b7"), TRACE.span_id, 5.0, 4.0, failed="Poison"))
    tracer.close()
    child, root = collector.of(TRACE.trace_id)
    assert (root.name, root.span_id, root.parent_id, root.kind) == ("root", TRACE.span_id, "", "consumer")
    assert (root.began_ns, root.ended_ns) == (1_700_000_000 * 10**9, 1_700_000_001_500_000_000)
    assert root.attributes == {"headrace.job_id": "q-1", "n": 3}
    assert (child.span_id, child.parent_id, child.failed) == ("00f067aa0ba902b7", TRACE.span_id, True)
    assert child.attributes == {"error.type": "Poison"}
    assert child.ended_ns == child.began_ns  # a clock went back meanwhile
    assert root.service == "headrace"
    assert collector.paths == {"/v1/traces"}


def test_the_standard_variables_name_the_service_and_keep_a_share_of_whole_traces(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mill")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    tracer = OtelTracer("headrace")
    for number in range(1, 16):
        place = Trace(f"{number:x}" * 32, "b7ad6b7169203331")
        tracer.record(replace(ROOT, trace=place))
        tracer.record(replace(ROOT, trace=place.child("00f067aa0ba902b7"), parent_id=place.span_id))
    tracer.close()
    traces = {span.trace_id for span in collector.spans}
    assert 0 < len(traces) < 15
    assert len(collector.spans) == 2 * len(traces)
    assert {span.service for span in collector.spans} == {"mill"}


def test_a_collector_that_is_out_costs_one_warning_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with capture_logs() as logs:
        tracer = OtelTracer("headrace")
        for _ in range(10_000):  # more than wait at once
            tracer.record(ROOT)
        began = time.monotonic()
        tracer.close()
    assert time.monotonic() - began < CLOSE_S + 60.0  # no more than a hang of this test
    assert [line["event"] for line in logs].count("the collector takes no spans; they are lost until it does") <= 1
    assert all(line["log_level"] == "warning" for line in logs)


class Kept:
    """A tracer in memory."""

    on = True

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def record(self, span: Span) -> None:
        self.spans.append(span)

    def close(self) -> None:
        """Nothing."""


def test_a_call_is_a_span_below_where_it_is_made_and_ends_once_also_if_it_fails() -> None:
    kept = Kept()

    def call() -> None:
        with outgoing_call(kept, "chat") as span:
            span.attributes["n"] = 1
            assert span.http_headers["traceparent"].startswith(f"00-{TRACE.trace_id}-")
            raise KeyboardInterrupt

    reset = CURRENT.set(TRACE)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        CURRENT.reset(reset)
    (span,) = kept.spans
    assert (span.parent_id, span.failed, span.attributes) == (TRACE.span_id, "KeyboardInterrupt", {"n": 1})
    assert span.trace.span_id != TRACE.span_id


@pytest.mark.parametrize(("tracer", "flags"), [(NoTracing(), 1), (Kept(), 0)])
def test_where_nothing_is_recorded_a_call_passes_the_trace_on_as_it_came(tracer: Tracer, flags: int) -> None:
    place = replace(TRACE, flags=flags)
    reset = CURRENT.set(place)
    try:
        with outgoing_call(tracer, "chat") as span:
            assert span.http_headers == {"traceparent": place.traceparent}
    finally:
        CURRENT.reset(reset)
    with outgoing_call(tracer, "chat") as span:
        assert span.http_headers == {}


def test_a_process_without_a_collector_records_nothing_and_imports_nothing() -> None:
    """Of flows: where OpenTelemetry is installed, FastAPI imports its interface by itself."""
    assert isinstance(tracer_for("headrace", {}), NoTracing)
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert isinstance(tracer_for("headrace", named | {"OTEL_SDK_DISABLED": "true"}), NoTracing)
    assert isinstance(tracer_for("headrace", named | {"OTEL_TRACES_EXPORTER": "none"}), NoTracing)
    script = (
        "import sys, cli.run; from cli.tracing import tracer_for; tracer_for('headrace'); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_collector_without_the_packages_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "connectors.tracing.otel", None)
    with capture_logs() as logs:
        tracer = tracer_for("headrace", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert isinstance(tracer, NoTracing)
    assert ["headrace[otel]" in line["event"] for line in logs] == [True]
