"""A bound on what goes to one receiver at once, known before the calls are made: so nothing queues behind them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from time import monotonic


@dataclass(frozen=True)
class PlacesPolicy:
    """How many at once."""

    per_host: int = 8  # of one tenant
    per_tenant: int = 32  # so that nobody takes all slots with many hosts
    forgotten_s: float = 120.0  # a place that was never given back is free again: calls end long before


class Places:
    """Whoever takes a place gives it back when the call has ended. For all threads of a process."""

    def __init__(self, policy: PlacesPolicy = PlacesPolicy(), clock: Callable[[], float] = monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = Lock()
        self._taken: dict[str, tuple[float, str, str]] = {}  # by name: since when, tenant, host; oldest first
        self._tenants: Counter[str] = Counter()
        self._hosts: Counter[tuple[str, str]] = Counter()

    def take(self, name: str, *, tenant: str, host: str) -> bool:
        """Take a place, if there is one; not while the same name has one already."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            if (
                name in self._taken
                or self._tenants[tenant] >= self._policy.per_tenant
                or self._hosts[tenant, host] >= self._policy.per_host
            ):
                return False
            self._taken[name] = (now, tenant, host)
            self._tenants[tenant] += 1
            self._hosts[tenant, host] += 1
            return True

    def give(self, name: str) -> None:
        """Give it back; nothing happens if there is none, as after a restart."""
        with self._lock:
            self._give(name)

    def _give(self, name: str) -> None:
        taken = self._taken.pop(name, None)
        if taken is None:
            return
        _, tenant, host = taken
        self._tenants[tenant] -= 1
        self._hosts[tenant, host] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        if not self._hosts[tenant, host]:
            del self._hosts[tenant, host]

    def _forget(self, now: float) -> None:
        while self._taken:
            name, (since, _, _) = next(iter(self._taken.items()))
            if since + self._policy.forgotten_s > now:
                return
            self._give(name)
