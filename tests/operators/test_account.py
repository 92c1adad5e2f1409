"""A tenant's account: whatever comes in whatever order, no window takes more than its limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from operators.account import Account, Cost, Over
from schemas.budgets import MAX_WINDOW_S, Budget, WindowLimit
from schemas.errors import Fatal
from schemas.prices import MONEY_UNITS, Prices

MINUTE = WindowLimit(seconds=60, tokens=1000)
MONTH = WindowLimit(kind="sliding", seconds=MAX_WINDOW_S, tokens=0)
T0 = 1_800_000_000.0  # a multiple of 60 and 3600


def budget(*windows: WindowLimit) -> Budget:
    return Budget(windows=windows)


def test_a_hundred_at_once_at_the_edge_get_exactly_what_is_left() -> None:
    account = Account(budget(MINUTE), T0)
    granted = [n for n in range(100) if account.reserve(f"a{n}", Cost(101), T0 + 1) is None]
    assert len(granted) == 9  # of 101 tokens each: 909, and a tenth would make 1,010


def test_what_was_reserved_and_not_used_is_free_again() -> None:
    account = Account(budget(MINUTE), T0)
    assert account.reserve("a", Cost(1000), T0) is None
    assert account.reserve("b", Cost(1), T0) is not None
    account.settle("a", Cost(400), T0 + 1, T0 + 1)
    assert account.reserve("b", Cost(600), T0 + 2) is None
    assert account.reserve("c", Cost(1), T0 + 2) is not None


def test_a_repeated_settlement_and_a_replayed_reservation_change_nothing() -> None:
    account = Account(budget(MINUTE), T0)
    account.reserve("a", Cost(500), T0)
    account.settle("a", Cost(500), T0 + 1, T0 + 1)
    account.settle("a", Cost(500), T0 + 1, T0 + 2)
    assert account.reserve("a", Cost(900), T0 + 3) is None
    assert account.reserved == {}
    assert account.used(MINUTE) == (500, 0)


def test_a_settlement_that_comes_before_its_replayed_request_is_counted_once() -> None:
    account = Account(budget(MINUTE), T0)
    assert account.settle("a", Cost(700), T0 + 1, T0 + 1) is None  # nothing reserved: flagged
    assert account.reserve("a", Cost(900), T0 + 2) is None
    assert account.used(MINUTE) == (700, 0)
    assert account.reserved == {}


def test_a_late_settlement_is_charged_to_the_window_in_which_the_call_ended() -> None:
    account = Account(budget(MINUTE), T0)
    account.reserve("a", Cost(600), T0 + 50)
    over = account.reserve("b", Cost(600), T0 + 61)
    assert over is not None  # while it is in flight it counts in the new window, too
    assert over.resume_at is None
    account.settle("a", Cost(600), T0 + 59, T0 + 62)
    assert account.reserve("b", Cost(1000), T0 + 63) is None


def test_a_fixed_window_says_when_it_ends_and_a_sliding_one_when_enough_has_left_it() -> None:
    fixed, sliding = (Account(budget(replace_kind(MINUTE, kind)), T0) for kind in ("fixed", "sliding"))
    for account in (fixed, sliding):
        for second, tokens in ((10, 300), (20, 700)):
            account.reserve(f"{second}", Cost(tokens), T0 + second)
            account.settle(f"{second}", Cost(tokens), T0 + second, T0 + second)
    over = fixed.reserve("x", Cost(100), T0 + 30)
    assert over is not None
    assert over.resume_at == T0 + 60
    over = sliding.reserve("x", Cost(100), T0 + 30)
    assert over is not None
    assert over.resume_at == T0 + 71
    assert sliding.reserve("x", Cost(100), T0 + 70.9) is not None
    assert sliding.reserve("x", Cost(300), T0 + 71) is None


def replace_kind(window: WindowLimit, kind: str) -> WindowLimit:
    return WindowLimit.model_validate(window.model_dump() | {"kind": kind})


def test_more_than_the_whole_limit_never_fits_and_the_reason_says_so() -> None:
    over = Account(budget(MINUTE), T0).reserve("a", Cost(1001), T0)
    assert over is not None
    assert not over.ever
    assert "1,001 tokens" in over.reason()
    assert "1,000" in over.reason()


def test_a_changed_budget_applies_to_what_has_been_used_already() -> None:
    account = Account(Budget(), T0)
    account.reserve("a", Cost(5000), T0)
    account.settle("a", Cost(5000), T0 + 1, T0 + 1)
    account.budget = budget(WindowLimit(seconds=86400, tokens=6000))
    assert account.reserve("b", Cost(1001), T0 + 7200) is not None
    assert account.reserve("b", Cost(1000), T0 + 7200) is None


def test_what_is_used_in_the_first_second_of_a_window_counts() -> None:
    account = Account(budget(MINUTE), T0)
    account.reserve("a", Cost(600), T0 + 0.1)
    account.settle("a", Cost(600), T0 + 0.2, T0 + 0.3)
    assert account.reserve("b", Cost(401), T0 + 0.4) is not None
    assert account.reserve("b", Cost(400), T0 + 0.4) is None


def test_a_clock_that_steps_back_opens_no_former_window() -> None:
    account = Account(budget(MINUTE), T0)
    account.reserve("a", Cost(1000), T0 + 61)
    account.settle("a", Cost(1000), T0 + 1, T0 + 2)  # by a clock that was set back
    assert account.reserve("b", Cost(1), T0 + 3) is not None
    assert account.reserve("b", Cost(1000), T0 + 120) is None


def test_money_is_counted_exactly_and_by_the_dearest_model_where_none_is_known() -> None:
    prices = Prices({"small": (Decimal("0.15"), Decimal("0.6")), "large": (Decimal("2.5"), Decimal(10))})
    assert prices.money("small", 1_000_000, 1_000_000) == 750_000_000_000
    assert prices.money(None, 10, 1) == prices.money("large", 10, 1) == 35_000_000
    assert prices.money("unheard of", 10, 1) == 35_000_000
    account = Account(budget(WindowLimit(seconds=60, money=Decimal("0.000035"))), T0)
    assert account.reserve("a", Cost(11, 35_000_000), T0) is None
    over = account.reserve("b", Cost(1, 1), T0)
    assert over is not None
    assert over.unit == "money"


def test_a_snapshot_of_another_release_is_refused() -> None:
    snapshot = Account(budget(MINUTE), T0).snapshot
    with pytest.raises(Fatal, match="snapshot version 99"):
        Account.restored(budget(MINUTE), (99, *snapshot[1:]))


WINDOWS = st.sampled_from(
    [
        (),
        (MINUTE,),
        (WindowLimit(kind="sliding", seconds=60, tokens=1000),),
        (WindowLimit(seconds=60, tokens=700), WindowLimit(kind="sliding", seconds=300, tokens=1500)),
        (WindowLimit(kind="sliding", seconds=90, tokens=500), WindowLimit(seconds=3600, money=Decimal("0.0015"))),
    ]
)


@dataclass
class Call:
    """A call that was let through, as the model knows it."""

    cost: Cost
    reserved_at: float
    limits: tuple[WindowLimit, ...]
    used: Cost | None = None
    used_at: float = 0.0


class AccountMachine(RuleBasedStateMachine):
    """Requests, settlements (late, repeated, before their replay), crashes, changed budgets, clock steps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.latest = T0
        self.windows: tuple[WindowLimit, ...] = (MINUTE,)
        self.account = Account(budget(*self.windows), self.now)
        self.snapshot = self.account.snapshot
        self.replay: list[tuple[str, Cost, float | None]] = []  # since the snapshot
        self.calls: dict[str, Call] = {}
        self.settled: set[str] = set()
        self.ended: list[str] = []  # their settlements may come, and come again, at any time
        self.numbers = 0

    def clock(self) -> float:
        self.latest = max(self.latest, self.now)
        return self.now

    @rule(tokens=st.integers(1, 1200))
    def request(self, tokens: int) -> None:
        self.numbers += 1
        name, cost = f"a{self.numbers}", Cost(tokens, tokens * 1_000_000)
        over = self.account.reserve(name, cost, self.clock())
        if over is None:
            self.calls[name] = Call(cost, self.latest, self.windows)
            self.replay.append((name, cost, None))

    @precondition(lambda self: any(call.used is None for call in self.calls.values()))
    @rule(data=st.data(), share=st.integers(0, 4))
    def call_ends(self, data: st.DataObject, share: int) -> None:
        """Using up to what was reserved; nobody has been told yet."""
        name = data.draw(st.sampled_from([name for name, call in self.calls.items() if call.used is None]))
        call = self.calls[name]
        call.used = Cost(call.cost.tokens * share // 4, call.cost.money * share // 4)
        self.clock()
        call.used_at = max(self.now, call.reserved_at)
        self.ended.append(name)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def settlement(self, data: st.DataObject) -> None:
        """In any order, and again."""
        self._settle(data.draw(st.sampled_from(self.ended)))

    def _settle(self, name: str) -> None:
        call = self.calls[name]
        assert call.used is not None
        more = self.account.settle(name, call.used, call.used_at, self.clock())
        assert more is not True
        self.replay.append((name, call.used, call.used_at))
        self.settled.add(name)

    @rule(windows=WINDOWS)
    def budget_changes(self, windows: tuple[WindowLimit, ...]) -> None:
        self.windows = windows
        self.account.budget = budget(*windows)

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.0, 30.0, 59.0, 59.5, 60.0, 100.0, 4000.0, -20.0, -100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def snapshot_is_taken(self) -> None:
        self.snapshot = self.account.snapshot
        self.replay = []

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """What came since the snapshot comes again: the inputs keep their own orders, and not that between them."""
        self.account = Account.restored(budget(*self.windows), self.snapshot)
        requests = [each for each in self.replay if each[2] is None]
        settlements = [each for each in self.replay if each[2] is not None]
        self.replay = []
        while requests or settlements:
            first = data.draw(st.booleans()) if requests and settlements else bool(requests)
            name, cost, used_at = (requests if first else settlements).pop(0)
            if used_at is not None:
                self.account.settle(name, cost, used_at, self.clock())
                self.replay.append((name, cost, used_at))
            else:
                # It was let through before the crash, and its call may have been made. Now it may have to wait.
                self.account.reserve(name, cost, self.clock(), force=True)
                self.replay.append((name, cost, None))

    @invariant()
    def everything_is_counted_once_and_nothing_stays_reserved(self) -> None:
        used = [call.used for name, call in self.calls.items() if name in self.settled and call.used is not None]
        tokens, money = self.account.used(MONTH)
        assert (tokens, money) == (sum(each.tokens for each in used), sum(each.money for each in used))
        assert self.account.reserved.keys() == self.calls.keys() - self.settled

    @invariant()
    def no_window_has_taken_more_than_the_highest_limit_under_which_its_calls_were_let_through(self) -> None:
        ended = [call for call in self.calls.values() if call.used is not None]
        for window in {window for call in ended for window in call.limits}:
            for span in spans(window, [call.used_at for call in ended]):
                inside = [call for call in ended if span[0] < call.used_at <= span[1]]
                # A budget that was wider meanwhile let more through; what was let through under this one must fit.
                if inside and all(window in call.limits for call in inside):
                    assert within(window, inside), (window, span, inside)


def within(window: WindowLimit, calls: Sequence[Call]) -> bool:
    tokens = sum(call.used.tokens for call in calls if call.used is not None)
    money = sum(call.used.money for call in calls if call.used is not None)
    return (window.tokens is None or tokens <= window.tokens) and (
        window.money is None or money <= window.money * MONEY_UNITS
    )


def spans(window: WindowLimit, times: Sequence[float]) -> list[tuple[float, float]]:
    """From (exclusive) and to (inclusive) of every window in which something may have been used."""
    if window.kind == "sliding":
        return [(at - window.seconds, at) for at in times]
    starts = {at // window.seconds * window.seconds for at in times}
    return [(start - 1e-6, start + window.seconds - 1e-6) for start in starts]


TestAccountMachine = AccountMachine.TestCase
TestAccountMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 150)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_whoever_waits_until_the_moment_named_finds_room(calls: list[tuple[int, int]]) -> None:
    window = WindowLimit(kind="sliding", seconds=60, tokens=1000)
    account = Account(budget(window), T0)
    now = T0
    for number, (tokens, wait) in enumerate(calls):
        now += wait / 10
        over: Over | None = account.reserve(f"{number}", Cost(tokens), now)
        if over is not None:
            assert over.resume_at is not None  # nothing is in flight
            assert over.resume_at > now
            now = over.resume_at
            assert account.reserve(f"{number}", Cost(tokens), now) is None
        account.settle(f"{number}", Cost(tokens), now, now)
