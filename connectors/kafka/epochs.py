"""When the sources of a flow end their epochs: all at the same moments, in every process.

Each source of a flow ends its epochs by itself, the first time that it is looked at after the interval, and then waits
for all others; Bytewax waits without a pause, and reads nothing meanwhile. Left to themselves they drift apart, a look
at a time: after three minutes an idle flow with six sources used half a core, and more each minute.
"""

from datetime import UTC, datetime, timedelta

LOOK = timedelta(milliseconds=20)
"""How often an idle source is looked at: a record waits at most this long; 16 idle partitions cost 2 % of a core."""

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_EARLY = 1.5 * LOOK  # how much sooner than it should an epoch may end, so that a source that is late catches up


def epoch_interval(epoch_s: float) -> timedelta:
    """What to tell Bytewax for epochs of `epoch_s` seconds: sources that know them make up the rest (`Epochs`)."""
    epoch = timedelta(seconds=epoch_s)
    return epoch - min(_EARLY, epoch / 10)


class Epochs:
    """When the epochs of a partition should end: all at the same moments, whole multiples of `epoch_s` since 1970."""

    def __init__(self, epoch_s: float, now: datetime) -> None:
        self._length_us = round(epoch_s * 1_000_000)
        self._may_end_after = epoch_interval(epoch_s)
        self.began(now)

    def began(self, now: datetime) -> None:
        """A new one begins."""
        self._may_end_at = now + self._may_end_after
        us = (now - _UNIX).days * 86_400_000_000 + (now - _UNIX).seconds * 1_000_000 + now.microsecond
        ends_us = (us + self._length_us + self._length_us // 2) // self._length_us * self._length_us
        self._should_end_at = _UNIX + timedelta(microseconds=ends_us)

    def no_earlier(self, moment: datetime) -> datetime:
        """`moment`, or the end of the epoch if a look at `moment` would end it too early."""
        return self._should_end_at if self._may_end_at <= moment < self._should_end_at else moment

    def next_look(self, now: datetime, every: timedelta = LOOK) -> datetime:
        """When an idle source is to be looked at again: at a whole multiple of `every`, or at the end of the epoch."""
        moment = now + every - timedelta(microseconds=now.microsecond % (every / timedelta(microseconds=1)))
        if now < self._should_end_at < moment:
            moment = self._should_end_at
        return self.no_earlier(moment)
