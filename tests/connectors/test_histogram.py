"""A histogram that costs little and tells what prometheus_client's own tells."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Reference

from connectors.histogram import Histogram

BUCKETS = (0.1, 1.0, 60.0)


def test_it_exposes_what_the_reference_exposes() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    quick = Histogram("call_seconds", "Of each call.", ["step"], buckets=BUCKETS, registry=ours)
    reference = Reference("call_seconds", "Of each call.", ["step"], buckets=BUCKETS, registry=theirs)
    for step, value in (("a", 0.05), ("a", 0.1), ("a", 0.5), ("b", 59.0), ("b", 1e6)):
        quick.labels(step).observe(value)
        reference.labels(step).observe(value)
    told = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == told


def test_labels_of_another_number_are_refused() -> None:
    histogram = Histogram("state_seconds", "-", ["step", "state"], buckets=BUCKETS, registry=CollectorRegistry())
    with pytest.raises(ValueError, match="state_seconds has the labels step, state"):
        histogram.labels("a")


def test_two_metrics_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Reference("call_seconds", "-", registry=registry)
    with pytest.raises(ValueError, match="call_seconds"):
        Histogram("call_seconds", "-", ["step"], buckets=BUCKETS, registry=registry)


def test_what_is_shared_is_told_by_both() -> None:
    registry = CollectorRegistry()
    calls = Histogram("call_seconds", "-", ["step"], buckets=BUCKETS, registry=registry)
    states = Histogram("state_seconds", "-", ["step", "state"], buckets=BUCKETS, registry=registry)
    states.share(calls.labels("a"), "a", "running")
    calls.labels("a").observe(0.5)
    assert registry.get_sample_value("state_seconds_sum", {"step": "a", "state": "running"}) == 0.5
