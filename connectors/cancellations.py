"""The jobs that were cancelled, for every step of a process.

Guarantee: whoever watches a job hears of its cancellation once, whether that came before or after. A cancellation holds
for jobs of its own tenant alone. Memory: at most MOST of the last week; beyond that the oldest are forgotten.
"""

import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from weakref import WeakSet

import structlog

from connectors.kafka.record import Record
from schemas.cancellations import CancelRequested
from schemas.event import utc_now

log = structlog.get_logger()

MOST = 50_000
"""More than anybody cancels in a week, and some 20 MB."""

REMEMBERED = timedelta(days=7)
"""As long as requests.submitted and documents.uploaded are kept."""

LOOK_S = 1.0
"""How often what waits, for a budget, a person or a tool, looks whether it was cancelled; less often if much waits."""

LOOK_BYTES_PER_S = 1_000_000
"""Of all that waits in a process: whoever looks is then in a snapshot, whole, which is some four times as large."""

WAITING_BYTES = 4_000
"""Of a snapshot, for what waits, besides its message."""

NO_REASON = "no reason given"

Told = Callable[[str], None]


class Cancellations:
    """Reasons by tenant and job. May be used from any thread."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[datetime, str]] = {}  # in the order in which they came
        self._watchers: dict[tuple[str, str], list[Told]] = {}
        self._lookouts: WeakSet[Lookout] = WeakSet()  # of those for which something waits

    def add(self, cancelled: CancelRequested, at: datetime | None = None) -> None:
        """A job was cancelled, at the time of its message; the first reason stays."""
        job, moment = (cancelled.tenant, cancelled.job_id), at or self._clock()
        oldest = self._clock() - REMEMBERED
        if moment < oldest:
            return
        with self._lock:
            _, reason = self._known.setdefault(job, (moment, cancelled.reason or NO_REASON))
            self._forget(oldest)
            watchers = self._watchers.pop(job, [])
        for told in watchers:
            told(reason)

    def _forget(self, oldest: datetime) -> None:
        while self._known:
            first = next(iter(self._known))
            if self._known[first][0] >= oldest:
                if len(self._known) <= MOST:
                    return
                log.warning("too many cancellations; the oldest is forgotten", job_id=first[1], most=MOST)
            del self._known[first]

    def of(self, tenant: str, job_id: str) -> str | None:
        """Why the job was cancelled; None if it was not."""
        known = self._known.get((tenant, job_id)) if self._known else None  # every request comes by
        return None if known is None else known[1]

    def watch(self, tenant: str, job_id: str, told: Told) -> str | None:
        """Call `told` with the reason when the job is cancelled; if it was already, return it and do not call."""
        job = tenant, job_id
        with self._lock:
            known = self._known.get(job)
            if known is None:
                self._watchers.setdefault(job, []).append(told)
        return None if known is None else known[1]

    def unwatch(self, tenant: str, job_id: str, told: Told) -> None:
        """Call it no more; one that was called already needs no such thing."""
        job = tenant, job_id
        with self._lock:
            watchers = self._watchers.get(job, [])
            if told in watchers:
                watchers.remove(told)
            if not watchers:
                self._watchers.pop(job, None)

    def waiting_bytes(self, lookout: "Lookout") -> int:
        """Of all lookouts, of which this one has changed."""
        with self._lock:
            if lookout.waiting_bytes:
                self._lookouts.add(lookout)
            else:
                self._lookouts.discard(lookout)
            return sum(each.waiting_bytes for each in self._lookouts)


class Lookout:
    """When what waits looks next; by the clock of the engine, which wakes it."""

    def __init__(self, cancellations: Cancellations) -> None:
        self._cancellations = cancellations
        self._looked_at = 0.0  # Unix seconds
        self.waiting_bytes = 0

    def looked(self) -> None:
        """That was now."""
        self._looked_at = time.time()

    def next_at(self, waiting: Iterable[Record]) -> float:
        """Unix seconds; for the messages that wait now."""
        self.waiting_bytes = sum(len(record.value or b"") + WAITING_BYTES for record in waiting)
        return self._looked_at + max(LOOK_S, self._cancellations.waiting_bytes(self) / LOOK_BYTES_PER_S)
