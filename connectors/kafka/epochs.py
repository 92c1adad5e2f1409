"""When the sources of a flow end their epochs: all at the same moments, in every process.

Each source of a flow ends its epochs by itself, the first time that it is looked at after the interval, and then waits
for all others; Bytewax waits without a pause, and reads nothing meanwhile. Left to themselves they drift apart, a look
at a time: after three minutes an idle flow with six sources used half a core, and more each minute. Nor may each decide
by itself which moment is its own: those that begin just before half an epoch would be one ahead of those that begin
just after, and wait for them for ever (one start of an idle flow in eight then used four fifths of a core).
"""

import threading
from datetime import UTC, datetime, timedelta

LOOK = timedelta(milliseconds=20)
"""How often an idle source is looked at: a record waits at most this long."""

QUIET_LOOK = 5 * LOOK
"""The same for one that has been idle for a second: 24 such partitions, looked at as often as others, took 15 % of a
core."""

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_EARLY = 1.5 * LOOK  # how much sooner than it should an epoch may end, so that a source that is late catches up

LATE = timedelta(milliseconds=5)
"""How late a look may come: one that is due a little before an epoch may end would otherwise end it too early."""


def epoch_interval(epoch_s: float) -> timedelta:
    """What to tell Bytewax for epochs of `epoch_s` seconds: sources that know them make up the rest (`Epochs`)."""
    epoch = timedelta(seconds=epoch_s)
    return epoch - min(_EARLY, epoch / 10)


class Schedule:
    """When the epochs of a flow end in this process: the first source that begins one decides for all. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, datetime] = {}

    def end_of(self, number: int, proposed: datetime) -> datetime:
        """Of the epoch of that number, counted from the start: what was decided, or else what is proposed."""
        with self._lock:
            self._ends.pop(number - 2, None)  # Bytewax lets no source be two ahead
            return self._ends.setdefault(number, proposed)


class Epochs:
    """When the epochs of a partition should end: all at the same moments, whole multiples of `epoch_s` since 1970."""

    def __init__(self, epoch_s: float, now: datetime, schedule: Schedule) -> None:
        self._length_us = round(epoch_s * 1_000_000)
        self._may_end_after = epoch_interval(epoch_s)
        self._schedule = schedule
        self._number = 0
        self.began(now)

    def began(self, now: datetime) -> None:
        """A new one begins."""
        self._number += 1
        self._may_end_at = now + self._may_end_after - LATE
        us = (now - _UNIX).days * 86_400_000_000 + (now - _UNIX).seconds * 1_000_000 + now.microsecond
        ends_us = (us + self._length_us + self._length_us // 2) // self._length_us * self._length_us
        self._should_end_at = self._schedule.end_of(self._number, _UNIX + timedelta(microseconds=ends_us))

    def no_earlier(self, moment: datetime) -> datetime:
        """`moment`, or the end of the epoch if a look at `moment` would end it too early."""
        return self._should_end_at if self._may_end_at <= moment < self._should_end_at else moment

    def next_look(self, now: datetime, every: timedelta = LOOK) -> datetime:
        """When an idle source is to be looked at again: at a whole multiple of `every`, or at the end of the epoch.

        `every` is less than a second.
        """
        moment = now + timedelta(microseconds=every.microseconds - now.microsecond % every.microseconds)
        # An epoch that is overdue ends as soon as it may: a look later it would be as late the next time.
        end = self._should_end_at if now < self._should_end_at else self._may_end_at + 2 * LATE
        if now < end:
            moment = min(moment, end)
        return self.no_earlier(moment)
