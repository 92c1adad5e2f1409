"""A tenant's account: what it has used, what is reserved for calls in flight, and whether more would be too much.

Invariant: when a reservation is granted, what was used within each window, plus everything reserved, plus the new
reservation is at most the window's limit. A call that uses no more than was reserved for it therefore never takes a
window over its limit, in whatever order requests, settlements, repeats, changes of the budget and windows come.

* Use is charged to the moment when the call ended, so that a late settlement does not burden a later window.
* Use is remembered by second for 2 minutes, by minute for 2 hours and by hour for 31 days, whatever the budget is: a
  changed budget applies to what has been used already. The oldest bucket of a sliding window counts as a whole.
* Each admission is reserved once and settled once. A repeated settlement changes nothing; what was settled before it
  was reserved needs no reservation: an admission is one message's (`operators.budget`), so this is its replay.
* The clock never goes back: a step backwards stops it until the former time has come again.

Pure: no bytewax, no clock of its own. Money is counted as `schemas.prices` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

from operators.dedup import DedupPolicy, Generations, GenerationsSnapshot
from operators.digests import digest_of
from schemas.budgets import MAX_WINDOW_S, Budget, WindowLimit, resolution_s
from schemas.errors import Fatal
from schemas.prices import MONEY_UNITS

SETTLED = DedupPolicy(remember_s=2 * 24 * 3600.0, bucket_ids=4096)
"""Of the settlements of a tenant that are remembered: more than a replay of seconds repeats. One that is forgotten and
then repeated counts again, on the safe side."""

SNAPSHOT_VERSION = 1
_KEPT = ((1, 122), (60, 122), (3600, MAX_WINDOW_S // 3600 + 2))  # resolution in seconds, buckets

AccountSnapshot = tuple[
    int,
    float,
    tuple[dict[int, tuple[int, int]], ...],
    dict[str, tuple[int, int, float]],
    GenerationsSnapshot,
]


@dataclass(frozen=True)
class Cost:
    """What a call takes, or may take at most."""

    tokens: int
    money: int = 0  # in 10^-12


@dataclass(frozen=True)
class Over:
    """Why there is no room, and when there may be."""

    window: WindowLimit
    unit: str  # `tokens` or `money`
    used: int
    reserved: int
    asked: int
    limit: int
    resume_at: float | None  # Unix seconds; None: when calls in flight have ended, or never
    ever: bool  # False: it asks for more than the whole limit

    def reason(self) -> str:
        """For people."""
        scale = 1 if self.unit == "tokens" else MONEY_UNITS
        used, reserved, asked, limit = (
            f"{value / scale:,.6g}" if scale != 1 else f"{value:,}"
            for value in (self.used, self.reserved, self.asked, self.limit)
        )
        span = f"{self.window.kind} window of {self.window.seconds:,} s"
        if not self.ever:
            return f"it may need {asked} {self.unit}, and the limit of its tenant's {span} is {limit}"
        return (
            f"it may need {asked} {self.unit}; of the {limit} of its tenant's {span}, {used} are used and {reserved} "
            "reserved for calls in flight"
        )


class _Limit:
    """One window of a budget in plain numbers, and what is used in it: asked for with every request."""

    def __init__(self, window: WindowLimit) -> None:
        self.window = window
        self.fixed = window.kind == "fixed"
        self.seconds = window.seconds
        self.resolution = resolution_s(window.seconds)
        self.most = (window.tokens, None if window.money is None else int(window.money * MONEY_UNITS))
        self.first: int | None = None  # bucket, to which the sums below belong
        self.tokens = 0
        self.money = 0

    def first_at(self, now: float) -> int:
        """The first bucket of the window that is open now."""
        if self.fixed:
            return int(now // self.seconds) * self.seconds // self.resolution
        return floor((now - self.seconds) / self.resolution)


class Account:
    """See the module's docstring. `now` and all times: Unix seconds."""

    def __init__(self, budget: Budget, now: float) -> None:
        self._budget = budget
        self._now = now
        self._used: tuple[dict[int, tuple[int, int]], ...] = ({}, {}, {})  # by resolution, then bucket
        self._reserved: dict[str, tuple[int, int, float]] = {}  # tokens, money, since when
        self._reserved_sum = (0, 0)
        self._settled = Generations(SETTLED, now)
        self._limits = [_Limit(window) for window in budget.windows]

    @property
    def budget(self) -> Budget:
        """What holds now."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._budget = budget
        self._limits = [_Limit(window) for window in budget.windows]

    def clock(self, now: float) -> float:
        """Let time pass; what the account takes for now."""
        self._now = max(self._now, now)
        return self._now

    def reserve(self, admission_id: str, cost: Cost, now: float, *, force: bool = False) -> Over | None:
        """Set `cost` aside until it is settled; None if that was done, now or before. `force`: whatever the limits."""
        self.clock(now)
        if admission_id in self._reserved or digest_of(admission_id) in self._settled:
            return None
        over = self._over(cost)
        if over is None or force:
            self._reserved[admission_id] = (cost.tokens, cost.money, self._now)
            tokens, money = self._reserved_sum
            self._reserved_sum = (tokens + cost.tokens, money + cost.money)
        return over

    def settle(self, admission_id: str, cost: Cost, used_at: float, now: float) -> bool | None:
        """Charge what was used and free what was reserved.

        True: more was used than had been reserved. None: nothing had been reserved. False otherwise, and for a repeat.
        """
        now = self.clock(now)
        if not self._settled.add(digest_of(admission_id), now):
            return False
        reserved = self._reserved.pop(admission_id, None)
        if reserved is None:
            self._charge(cost, min(used_at, now))
            return None
        self._charge(cost, min(max(used_at, reserved[2]), now))  # never to a window in which it was not reserved
        tokens, money = self._reserved_sum
        self._reserved_sum = (tokens - reserved[0], money - reserved[1])
        return cost.tokens > reserved[0] or cost.money > reserved[1]

    def _charge(self, cost: Cost, at: float) -> None:
        if not cost.tokens and not cost.money:
            return
        for (resolution, kept), buckets in zip(_KEPT, self._used, strict=True):
            bucket, oldest = floor(at / resolution), floor(self._now / resolution) - kept
            if bucket < oldest:
                continue
            tokens, money = buckets.get(bucket, (0, 0))
            buckets[bucket] = (tokens + cost.tokens, money + cost.money)
            if len(buckets) > kept:
                for old in [each for each in buckets if each < oldest]:
                    del buckets[old]
        for limit in self._limits:
            if limit.first is not None and floor(at / limit.resolution) >= limit.first:
                limit.tokens += cost.tokens
                limit.money += cost.money

    def used(self, window: WindowLimit) -> tuple[int, int]:
        """Tokens and money within the window that is open now."""
        limit = _Limit(window)
        self._sum(limit)
        return limit.tokens, limit.money

    def _sum(self, limit: _Limit) -> None:
        """Make the sums those of the window that is open now."""
        first = limit.first_at(self._now)
        if first != limit.first:
            entries = [entry for bucket, entry in self._buckets(limit.resolution).items() if bucket >= first]
            limit.first = first
            limit.tokens, limit.money = sum(entry[0] for entry in entries), sum(entry[1] for entry in entries)

    def _buckets(self, resolution: int) -> dict[int, tuple[int, int]]:
        return next(buckets for (each, _), buckets in zip(_KEPT, self._used, strict=True) if each == resolution)

    def _over(self, cost: Cost) -> Over | None:
        worst: Over | None = None
        reserved_tokens, reserved_money = self._reserved_sum
        for limit in self._limits:
            self._sum(limit)
            for index, (used, reserved, asked) in enumerate(
                ((limit.tokens, reserved_tokens, cost.tokens), (limit.money, reserved_money, cost.money))
            ):
                most = limit.most[index]
                if most is not None and used + reserved + asked > most:
                    resume_at = None if used + asked <= most else self._room_at(limit.window, index, most - asked)
                    unit = "tokens" if index == 0 else "money"
                    over = Over(limit.window, unit, used, reserved, asked, most, resume_at, ever=asked <= most)
                    if worst is None or not over.ever or (worst.ever and (resume_at or 0) > (worst.resume_at or 0)):
                        worst = over
        return worst

    def _room_at(self, window: WindowLimit, index: int, most: int) -> float | None:
        """When no more than `most` of what is used now counts in the window."""
        if most < 0:
            return None
        if window.kind == "fixed":
            return float((floor(self._now / window.seconds) + 1) * window.seconds)
        resolution = resolution_s(window.seconds)
        left = self.used(window)[index]
        first = floor((self._now - window.seconds) / resolution)
        for bucket, entry in sorted(self._buckets(resolution).items()):
            if bucket >= first:
                left -= entry[index]
                if left <= most:
                    return float((bucket + 1) * resolution + window.seconds)
        return None

    @property
    def reserved(self) -> Mapping[str, tuple[int, int, float]]:
        """Tokens and money set aside, and since when, by admission."""
        return self._reserved

    @property
    def snapshot(self) -> AccountSnapshot:
        """As the recovery state holds it."""
        used = tuple(dict(buckets) for buckets in self._used)
        return SNAPSHOT_VERSION, self._now, used, dict(self._reserved), self._settled.snapshot

    @classmethod
    def restored(cls, budget: Budget, snapshot: AccountSnapshot) -> "Account":
        """From a snapshot. Raises Fatal if it is another release's."""
        version, now, used, reserved, settled = snapshot
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"budget: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        account = cls(budget, now)
        account._used = tuple(dict(buckets) for buckets in used)
        account._reserved = dict(reserved)
        account._reserved_sum = (sum(each[0] for each in reserved.values()), sum(each[1] for each in reserved.values()))
        account._settled = Generations.restored(SETTLED, settled)
        return account
