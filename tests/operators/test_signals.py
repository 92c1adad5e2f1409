"""Processes of a cluster tell each other to stop and to hold back; each is a thread with a worker of its own here."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import TestingSink, cluster_main

from connectors.cluster import Cluster
from connectors.event_loop import EventLoop
from connectors.kafka.epochs import epoch_interval
from connectors.kafka.stop import Stop
from operators.runtime import Runtime
from operators.signals import signals
from tests.kafka.client import wait_for
from tests.memory_topics import MemoryTopics

EPOCH_S = 0.2


class _Until(StatefulSourcePartition[int, None]):
    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def next_batch(self) -> list[int]:
        if self._stop.requested:
            raise StopIteration
        return []

    def snapshot(self) -> None:
        return None


class _Source(FixedPartitionedSource[int, None]):
    """Ends with the stop of its process, as the Kafka source does."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def list_parts(self) -> list[str]:
        return [str(self._runtime.cluster.process)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Until:
        del step_id, for_part, resume_state
        return _Until(self._runtime.stop)


class Member:
    """One process."""

    def __init__(self, addresses: tuple[str, ...], process: int, loop: EventLoop) -> None:
        self.runtime = Runtime(MemoryTopics([]), loop, Stop(), cluster=Cluster(addresses, process))
        flow = Dataflow("test")
        op.output("out", op.input("in", flow, _Source(self.runtime)), TestingSink([]))
        signals("signals", flow, self.runtime, epoch_s=EPOCH_S, drain_s=5.0)
        self.thread = Thread(
            target=cluster_main,
            args=(flow, list(addresses), process),
            kwargs={"epoch_interval": epoch_interval(EPOCH_S)},
            daemon=True,
        )


@pytest.fixture
def members() -> Iterator[list[Member]]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        addresses = tuple(f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
    with EventLoop() as loop:
        found = [Member(addresses, process, loop) for process in range(2)]
        for each in found:
            each.thread.start()
        yield found
        for each in found:
            each.runtime.stop.request()
            each.thread.join(30.0)


def test_pressure_in_one_process_holds_back_the_other_until_it_is_over(members: list[Member]) -> None:
    one, other = members
    one.runtime.pressure.rise("infer")
    wait_for("the other to hold back", lambda: other.runtime.pressure.high, 30.0)
    assert not other.runtime.pressure.high_here
    one.runtime.pressure.fall("infer")
    wait_for("the other to go on", lambda: not other.runtime.pressure.high, 30.0)
    assert not one.runtime.pressure.high  # what it has said does not come back to it


def test_a_wish_to_stop_ends_all_processes(members: list[Member]) -> None:
    one, other = members
    other.runtime.stop.request(drain_s=5.0)
    wait_for("the first to hear of it", lambda: one.runtime.stop.requested, 30.0)
    for each in members:
        each.thread.join(30.0)
        assert not each.thread.is_alive()


def test_a_process_that_reads_no_partition_has_a_heartbeat(members: list[Member]) -> None:
    wait_for("an epoch in each", lambda: all(each.runtime.progress.began for each in members))
    assert [each.runtime.progress.positions for each in members] == [{}, {}]
