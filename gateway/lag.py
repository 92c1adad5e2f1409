"""How far behind each flow is, and how fast it goes: sampled by a thread, and kept for some minutes in memory.

An outage of Kafka leaves a gap in the history, and the last sample stands. What flows commit trails what they have done
by one snapshot (`connectors.kafka.source`): an idle flow's lag is 0 after two.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from connectors.kafka.positions import Position
from schemas.errors import HeadraceError
from schemas.topics import CATALOGUE

log = structlog.get_logger()

PERIOD_S = 5.0
KEPT = 60
"""Samples: 5 minutes."""
_CLOSE_S = 4.0  # a broker that is gone is given up after 3 s

Sample = tuple[float, int, float]
"""Unix seconds, lag, records per second since the sample before."""


@dataclass(frozen=True)
class TopicLag:
    """Of a topic that a flow reads; sums over its partitions."""

    topic: str
    lag: int
    end: int
    committed: int


@dataclass(frozen=True)
class FlowLag:
    """A flow as it was sampled last, and before."""

    flow: str
    topics: tuple[TopicLag, ...]
    lag: int
    per_s: float
    history: tuple[Sample, ...]  # the oldest first


class Positions(Protocol):
    """Where positions come from: `connectors.kafka.positions.GroupPositions`."""

    def of(self, group_ids: Sequence[str], topics: Sequence[str]) -> Mapping[str, Sequence[Position]]:
        """Each group's positions in the topics where it has committed."""
        ...


@dataclass
class _Known:
    """Of one flow."""

    positions: Sequence[Position]
    history: deque[Sample]


class Lag:
    """Samples the flows of `groups` from start() to close().

    groups: the consumer groups of each flow: one, or that of each slice where all slices read everything; the flow is
    then as far as the last of them.
    """

    def __init__(
        self, positions: Positions, groups: Mapping[str, Sequence[str]], *, period_s: float = PERIOD_S
    ) -> None:
        self._positions = positions
        self._groups = {flow: tuple(each) for flow, each in groups.items()}
        self._period_s = period_s
        self._topics = tuple(topic.name for topic in CATALOGUE)
        self._known: dict[str, _Known] = {}
        self._sampled_at: float | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def close(self) -> None:
        """End; waits for a sample that is being taken."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def flows(self) -> tuple[FlowLag, ...]:
        """Those that have ever committed anything, by name, as they were sampled last."""
        with self._lock:
            return tuple(_flow_lag(flow, known) for flow, known in sorted(self._known.items()))

    def sample(self, now: float) -> None:
        """Take one sample. Raises HeadraceError if Kafka does not answer. now: Unix seconds."""
        found = self._positions.of([each for groups in self._groups.values() for each in groups], self._topics)
        with self._lock:
            elapsed_s = None if self._sampled_at is None else now - self._sampled_at
            self._sampled_at = now
            before, self._known = self._known, {}
            for flow, groups in self._groups.items():
                positions = _hindmost([found[each] for each in groups if each in found])
                if not positions:
                    continue
                known = before.get(flow, _Known((), deque(maxlen=KEPT)))
                done = _growth(known.positions, positions)
                per_s = done / elapsed_s if elapsed_s else 0.0
                known.history.append((now, sum(each.lag for each in positions), per_s))
                self._known[flow] = _Known(positions, known.history)

    def _run(self) -> None:
        failing = False
        while not self._closing.is_set():
            begun = time.monotonic()
            try:
                self.sample(time.time())
                failing = False
            except HeadraceError as error:
                if not failing:  # once per outage
                    log.warning("lag not sampled; its history has a gap until Kafka answers", error=str(error))
                failing = True
            self._closing.wait(max(0.0, self._period_s - (time.monotonic() - begun)))


def _hindmost(groups: Sequence[Sequence[Position]]) -> Sequence[Position]:
    """In each partition the position of the group that is least far."""
    least: dict[tuple[str, int], Position] = {}
    for position in (each for positions in groups for each in positions):
        place = position.topic, position.partition
        former = least.get(place)
        if former is None or (position.committed or 0) < (former.committed or 0):
            least[place] = position
    return list(least.values())


def _growth(before: Sequence[Position], now: Sequence[Position]) -> int:
    """Records committed meanwhile, where the group had committed before; a topic made anew is no growth."""
    former = {(each.topic, each.partition): each.committed for each in before}
    grown = 0
    for each in now:
        was = former.get((each.topic, each.partition))
        if was is not None and each.committed is not None:
            grown += max(0, each.committed - was)
    return grown


def _flow_lag(flow: str, known: _Known) -> FlowLag:
    topics: dict[str, list[Position]] = {}
    for each in known.positions:
        topics.setdefault(each.topic, []).append(each)
    lags = tuple(
        TopicLag(
            topic,
            sum(each.lag for each in positions),
            sum(each.end for each in positions),
            sum(each.committed or 0 for each in positions),
        )
        for topic, positions in sorted(topics.items())
    )
    _, lag, per_s = known.history[-1]
    return FlowLag(flow, lags, lag, per_s, tuple(known.history))
