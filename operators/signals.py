"""What one process of a cluster tells the others: that it is to stop, and that it wants no more for now.

Guarantee: a wish to stop that one process hears (a SIGTERM, a failure) ends the sources of all, so that the cluster
drains, takes its last snapshot and ends as a single process does; a rolling update asks one process at a time. Pressure
in one process holds back the sources of all, as in `offload`. Both take a look of the source, 20 ms, and a message of
the cluster's own connections. State: none. It is part of a flow only where that has several processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import bytewax.operators as op
from bytewax.dataflow import Dataflow, operator
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from connectors.cluster import MOST_PROCESSES, Cluster
from connectors.kafka.epochs import LOOK, Epochs
from operators.runtime import Runtime

_SILENT_LOOK = 10 * LOOK  # of partitions that say nothing, and only end when all do


@dataclass(frozen=True)
class Signal:
    """How it is with one process, from now on."""

    process: int
    stopping: bool
    pressed: bool


class _Partition(StatefulSourcePartition[Signal, None]):
    """Tells each change, if it is the one that speaks for its process, and ends once it has told of the stop."""

    def __init__(self, runtime: Runtime, epoch_s: float, *, speaks: bool) -> None:
        self._runtime = runtime
        self._speaks = speaks
        self._told = Signal(runtime.cluster.process, stopping=False, pressed=False)
        self._epochs = Epochs(epoch_s, datetime.now(UTC), runtime.progress.schedule)
        self._epoch = 0  # how many have ended

    def next_batch(self) -> list[Signal]:
        if self._told.stopping:
            raise StopIteration
        runtime = self._runtime
        now = Signal(runtime.cluster.process, stopping=runtime.stop.requested, pressed=runtime.pressure.high_here)
        if now == self._told:
            return []
        self._told = now
        return [now] if self._speaks else []

    def next_awake(self) -> datetime | None:
        return self._epochs.next_look(datetime.now(UTC), LOOK if self._speaks else _SILENT_LOOK)

    def snapshot(self) -> None:
        self._epoch += 1
        self._runtime.progress.ended(self._epoch)  # of a process that reads no partition of a topic, too
        self._epochs.began(datetime.now(UTC))


class _Source(FixedPartitionedSource[Signal, None]):
    """Of the partitions of this process one speaks, the others only exist."""

    def __init__(self, runtime: Runtime, epoch_s: float) -> None:
        self._runtime = runtime
        self._epoch_s = epoch_s

    def list_parts(self) -> list[str]:
        self._runtime.progress.comes_together()
        return _parts_of(self._runtime.cluster)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Partition:
        del step_id, resume_state
        speaks = for_part == _part(self._runtime.cluster.process)
        return _Partition(self._runtime, self._epoch_s, speaks=speaks)


class _Obeying(StatefulSinkPartition[Signal, None]):
    def __init__(self, obey: Callable[[Signal], None]) -> None:
        self._obey = obey

    def write_batch(self, values: list[Signal]) -> None:
        for each in values:
            self._obey(each)

    def snapshot(self) -> None:
        return None


class _Sink(FixedPartitionedSink[Signal, None]):
    """Part n, for what is keyed by n, is in process n."""

    def __init__(self, runtime: Runtime, obey: Callable[[Signal], None]) -> None:
        self._runtime = runtime
        self._obey = obey

    def list_parts(self) -> list[str]:
        return _parts_of(self._runtime.cluster)

    def part_fn(self, item_key: str) -> int:  # Bytewax counts parts in the order of their names
        return int(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Obeying:
        del step_id, for_part, resume_state
        return _Obeying(self._obey)


def _part(number: int) -> str:
    return f"{number:02d}"


def _parts_of(cluster: Cluster) -> list[str]:
    """Always the same in all, spread over however many processes there are.

    Bytewax panics, without a word, over the state of a partition that nobody lists any more.
    """
    return [_part(number) for number in range(MOST_PROCESSES) if number % cluster.size == cluster.process]


@operator
def signals(step_id: str, flow: Dataflow, runtime: Runtime, *, epoch_s: float, drain_s: float) -> None:
    """Let the processes of a cluster stop together and hold back together.

    `drain_s`: what pending work gets where another process was asked to stop.
    """

    def obey(signal: Signal) -> None:
        if signal.process == runtime.cluster.process:
            return
        runtime.pressure.elsewhere(signal.process, high=signal.pressed)
        if signal.stopping:
            runtime.stop.request(drain_s=drain_s)

    def to_all(signal: Signal) -> list[tuple[str, Signal]]:
        return [(str(process), signal) for process in range(runtime.cluster.size)]

    told = op.input("told", flow, _Source(runtime, epoch_s))
    op.output("obey", op.flat_map("everywhere", told, to_all), _Sink(runtime, obey))
