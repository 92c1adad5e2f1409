"""When a flow's epochs end, as its sources and sinks tell it."""

from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from connectors.kafka.progress import Progress

ONE, OTHER = ("in", 0), ("in", 1)


class Hand:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def progress(clock: Hand) -> Progress:
    return Progress(f"flow-{uuid4().hex[:8]}", clock)


def silent_s(progress: Progress) -> float | None:
    return progress.silent_s


def began(progress: Progress) -> bool:
    return progress.began


def sampled(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"headrace_{name}", labels) or 0.0


def test_a_flow_has_begun_once_its_first_epoch_is_through_not_when_its_source_has_ended_it(progress: Progress) -> None:
    assert silent_s(progress) is None
    progress.ended(1)
    assert not began(progress)
    progress.flushed()
    assert began(progress)


def test_a_process_without_a_part_of_a_sink_has_begun_when_its_source_ends_the_second_epoch(progress: Progress) -> None:
    progress.ended(1)
    progress.ended(1)
    assert not began(progress)
    progress.ended(2)
    assert began(progress)


def test_both_ends_of_a_flow_are_signs_of_life(progress: Progress, clock: Hand) -> None:
    progress.ended(1)
    clock.now += 3
    assert silent_s(progress) == 3
    progress.flushed()
    assert silent_s(progress) == 0
    clock.now += 2
    progress.ended(2)
    assert silent_s(progress) == 0


def test_waiting_for_calls_is_a_sign_of_life_but_no_beginning(progress: Progress, clock: Hand) -> None:
    progress.waits()
    assert silent_s(progress) is None
    progress.ended(1)
    clock.now += 500
    progress.waits()
    assert silent_s(progress) == 0
    assert not began(progress)


def test_epochs_and_snapshots_are_timed_once_however_many_partitions_and_sinks_there_are(
    progress: Progress, clock: Hand
) -> None:
    for epoch in (1, 2, 3):
        progress.ended(epoch)
        clock.now += 0.05
        progress.ended(epoch)
        clock.now += 0.1
        progress.flushed()
        clock.now += 0.1
        progress.flushed()
        clock.now += 0.75
    assert sampled("epoch_seconds_count", flow=progress.flow) == 2
    assert sampled("epoch_seconds_sum", flow=progress.flow) == pytest.approx(2.0)
    assert sampled("snapshot_seconds_count", flow=progress.flow) == 2
    assert sampled("snapshot_seconds_sum", flow=progress.flow) == pytest.approx(2 * 0.25)


def test_positions_are_those_of_the_partitions_that_are_read(progress: Progress) -> None:
    progress.reads(ONE, 7)
    progress.reads(OTHER, 0)
    progress.took(ONE, 9, records=2)
    assert progress.positions == {ONE: 9, OTHER: 0}
    progress.reads_no_more(OTHER)
    assert progress.positions == {ONE: 9}
    assert sampled("records_read_total", flow=progress.flow, topic="in") == 2
