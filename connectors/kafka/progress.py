"""How far a flow is: its epochs, and its positions in the topics that it reads. What probes and metrics show.

An epoch is closed once everything that was read in it is through all steps, and what it wrote is acknowledged. Bytewax
lets no source end an epoch before the one before it is closed, in all processes: that is the flow's heartbeat. Sinks
are asked to flush only in epochs in which they were written to. Each process of a cluster has a source of its own
besides (`operators.signals`), so that one which reads no partition of a topic has a heartbeat, too.
"""

import threading
import time
from collections.abc import Callable

from prometheus_client import Counter, Histogram

from connectors.kafka.epochs import Schedule

Place = tuple[str, int]  # topic, partition

EPOCH_SECONDS = Histogram(
    "headrace_epoch_seconds",
    "From the end of one epoch to that of the next one; HEADRACE_EPOCH_S while nothing is in its way.",
    ["flow"],
    buckets=(0.1, 0.25, 0.5, 0.9, 1.1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300),
)
SNAPSHOT_SECONDS = Histogram(
    "headrace_snapshot_seconds",
    "From the end of an epoch at its sources until its sinks have flushed: until all that was on its way is through "
    "the steps, and acknowledged by the brokers. Nothing is read meanwhile. Epochs without output are left "
    "out.",
    ["flow"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120),
)
READ = Counter(
    "headrace_records_read_total", "Records that the flow has taken up; told once per epoch.", ["flow", "topic"]
)


class Progress:
    """Of one flow in this process; thread-safe. Times are those of `clock`, in seconds."""

    def __init__(self, flow: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.flow = flow
        self.schedule = Schedule()  # of its epochs: its sources share it
        self._clock = clock
        self._lock = threading.Lock()
        self._positions: dict[Place, int] = {}
        self._began_at = clock()
        self._beat_at: float | None = None
        self._together = False
        self._closed = 0
        self._epoch = 0  # the number of the last one that has ended at a source
        self._ended_at = 0.0  # when
        self._flushed_at: float | None = None  # when its last sink was through

    def reads(self, place: Place, offset: int) -> None:
        """A partition will be read from there."""
        with self._lock:
            self._positions[place] = offset

    def reads_no_more(self, place: Place) -> None:
        """The partition is closed."""
        with self._lock:
            self._positions.pop(place, None)

    @property
    def positions(self) -> dict[Place, int]:
        """Offset of the next record by partition, as of the last end of an epoch."""
        with self._lock:
            return dict(self._positions)

    def took(self, place: Place, offset: int, *, records: int) -> None:
        """So many records of a partition were read in an epoch, up to there."""
        with self._lock:
            self._positions[place] = offset
        if records:
            READ.labels(self.flow, place[0]).inc(records)

    def comes_together(self) -> None:
        """All processes of its cluster are connected: Bytewax asks for its sources only then."""
        self._together = True

    @property
    def together(self) -> bool:
        """Whether the processes of its cluster have been connected."""
        return self._together

    def ended(self, epoch: int) -> None:
        """A source has ended its epoch of that number, counted from 1: all of those before it are closed.

        All sources of a process count alike, so the first one to end an epoch ends it for all.
        """
        now = self._clock()
        with self._lock:
            if epoch > self._epoch:
                self._end(epoch, now)

    def _end(self, epoch: int, now: float) -> None:
        if self._epoch:
            self._closed = max(self._closed, self._epoch)
            EPOCH_SECONDS.labels(self.flow).observe(now - self._ended_at)
            if self._flushed_at is not None:
                SNAPSHOT_SECONDS.labels(self.flow).observe(self._flushed_at - self._ended_at)
        self._epoch = epoch
        self._ended_at = self._beat_at = now
        self._flushed_at = None

    def flushed(self) -> None:
        """A sink has delivered everything of an epoch, which is thereby closed for it."""
        with self._lock:
            self._flushed_at = self._clock()
            self._closed = max(self._closed, 1)
            self._beat_at = self._flushed_at

    def waits(self) -> None:
        """The flow halts its epochs for a reason that ends by itself: calls in flight, all of them with a timeout."""
        with self._lock:
            if self._beat_at is not None:
                self._beat_at = self._clock()

    @property
    def began(self) -> bool:
        """Whether the first epoch is closed, and so all state restored."""
        return self._closed > 0

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last sign of an epoch; None before the first."""
        with self._lock:
            return None if self._beat_at is None else self._clock() - self._beat_at

    @property
    def age_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began_at
