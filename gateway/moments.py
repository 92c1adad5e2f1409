"""Moments as the integers that the read model keeps and sorts by: microseconds since 1970 in UTC."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _US
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _US


def micros(at: datetime) -> int:
    """Exact; `at` is aware."""
    return (at - _EPOCH) // _US


def moment(us: int) -> datetime:
    """The inverse, in UTC; what UTC cannot say, as 9999-12-31T23:59:59-14:00, is the first or the last moment."""
    return _EPOCH + timedelta(microseconds=min(max(us, _FIRST_US), _LAST_US))
