"""The jobs that were cancelled, for every step of a process.

Guarantee: whoever watches a job hears of its cancellation once, whether that came before or after. A cancellation holds
for jobs of its own tenant alone. Memory: at most MOST of the last week; beyond that the oldest are forgotten.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from schemas.cancellations import CancelRequested
from schemas.event import utc_now

log = structlog.get_logger()

MOST = 50_000
"""More than anybody cancels in a week, and some 20 MB."""

REMEMBERED = timedelta(days=7)
"""As long as requests.submitted and documents.uploaded are kept."""

LOOK_S = 1.0
"""How often what waits, for a budget, a person or a tool, looks whether it was cancelled: and is then in a snapshot."""

NO_REASON = "no reason given"

Told = Callable[[str], None]


class Lookout:
    """When what waits looks next; by the clock of the engine, which wakes it."""

    def __init__(self) -> None:
        self.at = 0.0  # Unix seconds

    def looked(self) -> None:
        """That was now."""
        self.at = time.time() + LOOK_S


class Cancellations:
    """Reasons by tenant and job. May be used from any thread."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[datetime, str]] = {}  # in the order in which they came
        self._watchers: dict[tuple[str, str], list[Told]] = {}

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
