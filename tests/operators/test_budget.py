"""Budgets in a flow: who is let through, held back or rejected, and what bad input does."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main
from prometheus_client import REGISTRY
from pydantic import TypeAdapter

from connectors.cancellations import Cancellations
from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from connectors.tracing.off import NoTracing
from operators.account import Cost
from operators.budget import BudgetPolicy, Charge, _Step, _Tenant, budget
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.envelope import Envelope, job_of
from operators.offload import STATE_SECONDS
from operators.produce import produce
from operators.runtime import Runtime
from schemas.budgets import Budget, BudgetChanged, WindowLimit
from schemas.event import Event
from schemas.prices import Prices
from schemas.requests import RequestSubmitted
from schemas.usage import TokensUsed, nothing_used
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400


def request(job_id: str, *, tokens: int = 100, tenant: str = "acme", **fields: Any) -> RequestSubmitted:
    return RequestSubmitted(job_id=job_id, tenant=tenant, prompt="Why?", max_tokens=tokens, **fields)


def limited(tokens: int, policy: str = "reject", *, max_deferred: int = 1000, seconds: int = DAY) -> Budget:
    windows = (WindowLimit(seconds=seconds, tokens=tokens),)
    return Budget.model_validate({"windows": windows, "policy": policy, "max_deferred": max_deferred})


def run(
    runtime_on: MakeRuntime,
    *events: Event | Record,
    default: Budget = Budget(),  # noqa: B008  # frozen
    initial: Mapping[str, BudgetChanged] | None = None,
    prices: Prices = Prices({}),  # noqa: B008  # same
    clock: Callable[[], datetime] = lambda: T0,
) -> MemoryTopics:
    entries = [each if isinstance(each, Record) else record(each, offset=n) for n, each in enumerate(events)]
    topics = MemoryTopics(entries)
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    asked = consume("asked", flow, RequestSubmitted, runtime)
    used = consume("used", flow, TokensUsed, runtime)
    changed = consume("changed", flow, BudgetChanged, runtime)
    charge = Charge(
        RequestSubmitted,
        lambda body: Cost(body.max_tokens, prices.money(None, 0, body.max_tokens)),
        lambda envelope: envelope.job.job_id,
    )
    policy = BudgetPolicy(default, prices, initial or {})
    afforded = budget("budget", asked.oks, used.oks, changed.oks, charge, policy, runtime, clock)
    produce("passed", afforded.oks, RequestSubmitted, runtime)
    dead_letter("dlq", asked.errs, used.errs, changed.errs, afforded.errs, runtime=runtime)
    run_main(flow)
    return topics


def passed(topics: MemoryTopics) -> list[object]:
    return [each["job_id"] for each in topics.on("requests.submitted")]


def test_a_tenant_without_a_budget_has_the_default_and_each_tenant_its_own_account(runtime_on: MakeRuntime) -> None:
    asked = [request(f"{tenant}{n}", tenant=tenant) for n in range(3) for tenant in ("a", "b")]
    assert passed(run(runtime_on, *asked, default=limited(200))) == ["a0", "b0", "a1", "b1"]


def test_no_request_comes_before_the_budget_that_was_known_at_the_start(runtime_on: MakeRuntime) -> None:
    changed = BudgetChanged(job_id="b", tenant="acme", windows=(WindowLimit(seconds=DAY, tokens=150),))
    assert passed(run(runtime_on, request("a"), request("b"), initial={"acme": changed})) == ["a"]


def limit_of(tokens: int, changed_at: datetime | None = None, *, money: str | None = None) -> BudgetChanged:
    said = {} if changed_at is None else {"changed_at": changed_at}
    window = {"seconds": DAY, "money": money} if money else {"seconds": DAY, "tokens": tokens}
    return BudgetChanged.model_validate({"tenant": "acme", "windows": [window], **said})


def written(changed: BudgetChanged, at: datetime) -> Record:
    """On its topic; with its time only if it says one."""
    value = changed.model_dump_json(exclude_unset=True).encode()
    return replace(record(value, topic="budgets.config", key=b"acme"), timestamp=at)


def test_a_budget_in_money_that_was_known_at_the_start_is_refused_too_where_no_prices_are_known(
    runtime_on: MakeRuntime,
) -> None:
    initial = {"acme": limit_of(0, money="1")}
    assert passed(run(runtime_on, request("a"), request("b"), default=limited(150), initial=initial)) == ["a"]


@pytest.mark.parametrize("says_when", [True, False])
def test_former_budgets_that_are_read_again_do_not_replace_the_one_that_holds(
    runtime_on: MakeRuntime, *, says_when: bool
) -> None:
    moments = [T0 - timedelta(hours=hours) for hours in (3, 2, 1)]
    versions = [
        written(limit_of(tokens, at if says_when else None), at)
        for tokens, at in zip((1000, 2000, 150), moments, strict=True)
    ]
    initial = {"acme": limit_of(150, moments[-1])}
    requests = [request(f"{n}") for n in range(5)]
    # Each version is read between two requests, as a start reads the topic beside requests.submitted.
    topics = run(runtime_on, *versions[:2], *requests, initial=initial)
    assert passed(topics) == ["0"]
    assert topics.on("budgets.config.dlq") == []


def test_of_two_budgets_decided_at_once_the_one_written_last_holds(runtime_on: MakeRuntime) -> None:
    changed = written(limit_of(0, T0), T0)
    topics = run(runtime_on, changed, *(request(f"{n}") for n in range(9)), initial={"acme": limit_of(1000, T0)})
    assert len(passed(topics)) < 9


def test_a_budget_from_the_future_does_not_outlive_the_next_one() -> None:
    early = limit_of(1, T0 + timedelta(days=365)).written(T0)
    assert early.changed_at == T0
    assert limit_of(2).written(T0 + timedelta(hours=1)).changed_at > early.changed_at


def test_a_rejection_says_what_is_used_and_when_to_come_back_and_frees_nothing(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, request("a"), request("b"), default=limited(150))
    (letter,) = topics.dead_letters()
    assert (letter.job_id, letter.error_type, letter.retryable) == ("b", "OverBudget", True)
    assert "of the 150 of its tenant's fixed window of 86,400 s, 0 are used and 100 reserved" in letter.message
    assert "send it again when calls in flight have ended" in letter.message
    assert topics.on("usage.tokens") == []


def test_more_than_the_whole_budget_is_poison(runtime_on: MakeRuntime) -> None:
    (letter,) = run(runtime_on, request("a", tokens=151), default=limited(150, "defer")).dead_letters()
    assert (letter.error_type, letter.retryable) == ("NeverAffordable", False)


def test_what_is_held_back_goes_on_in_order_once_there_is_room(runtime_on: MakeRuntime) -> None:
    class Clock:
        """A day later from the seventh look on."""

        looks = 0

        def __call__(self) -> datetime:
            self.looks += 1
            return T0 if self.looks < 7 else T0 + timedelta(days=1)

    settled = TokensUsed(job_id="a", tenant="acme", admission_id="a", root_job_id="a", model="m", prompt_tokens=100)
    settled = settled.model_copy(update={"used_at": T0})
    topics = run(
        runtime_on,
        settled,
        *(request(name, tokens=60) for name in "bcde"),
        default=limited(150, "defer"),
        clock=Clock(),
    )
    held = [status for status in topics.statuses() if status.state == "deferred"]
    assert held
    assert all(status.detail and status.detail.startswith("held back: ") for status in held)
    assert passed(topics) == sorted(passed(topics), key=str)
    assert topics.dead_letters() == []


def test_no_more_than_max_deferred_are_held_back_and_none_beyond_its_deadline(runtime_on: MakeRuntime) -> None:
    hopeless = request("late", deadline_at=T0 + timedelta(hours=1))
    settled = TokensUsed(
        job_id="a", tenant="acme", admission_id="a", root_job_id="a", model="m", prompt_tokens=150, used_at=T0
    )
    topics = run(
        runtime_on,
        settled,
        hopeless,
        *(request(f"{n}") for n in range(4)),
        default=limited(150, "defer", max_deferred=2),
    )
    messages = {letter.job_id: letter.message for letter in topics.dead_letters()}
    if "late" in messages:  # topics are read side by side: it may have come before the settlement
        assert "deadline comes before there is room" in messages["late"]
    assert any("requests are held back already" in message for message in messages.values())


def test_a_repeat_of_what_is_held_back_is_neither_a_second_request_nor_the_end_of_the_first(
    runtime_on: MakeRuntime,
) -> None:
    asked = [request("a"), request("b"), request("b"), request("b")]
    topics = run(runtime_on, *asked, default=limited(150, "defer", max_deferred=1))
    assert topics.dead_letters() == []
    assert [status.detail for status in topics.statuses()][1:] == ["a repeat of a request that is held back"] * 2


def test_alert_lets_everything_through_and_says_so(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, request("a"), request("b"), default=limited(150, "alert"))
    assert passed(topics) == ["a", "b"]
    (status,) = topics.statuses()
    assert status.job_id == "b"
    assert "over budget, and let through" in (status.detail or "")


@pytest.mark.parametrize(
    "bad",
    [
        b'{"tenant": "acme", "windows": [{"seconds": 60, "tokens": -5}]}',
        b'{"tenant": "acme", "windows": [{"seconds": 0, "tokens": 5}]}',
        b'{"tenant": "acme", "windows": [{"seconds": 121, "tokens": 5}]}',
        b'{"tenant": "acme", "windows": [{"seconds": 60, "tokens": 1e30}]}',
        b'{"tenant": "acme", "windows": [{"seconds": 60}]}',
        b'{"tenant": "acme", "windows": [{"seconds": 60, "money": "0.5"}]}',
        b'{"tenant": "acme", "windows": [{"seconds": 60, "token": 5}]}',
        b'{"tenant": "acme", "windows": "none"}',
    ],
)
def test_an_absurd_budget_is_refused_with_an_error_event_and_the_old_one_stays(
    runtime_on: MakeRuntime, bad: bytes
) -> None:
    topics = run(runtime_on, record(bad, topic="budgets.config", key=b"acme"), request("a"), default=limited(150))
    (letter,) = topics.dead_letters()
    assert letter.topic == "budgets.config"
    assert not letter.ends_job
    assert passed(topics) == ["a"]


def test_a_tombstone_takes_the_tenant_back_to_the_default(runtime_on: MakeRuntime) -> None:
    poor = limit_of(1, T0 - timedelta(days=1))
    tombstone = record(b"", topic="budgets.config", key=b"acme")
    topics = run(runtime_on, tombstone, request("a"), initial={"acme": poor})
    assert topics.on("budgets.config.dlq") == []
    assert passed(run(runtime_on, request("a"), initial={"acme": poor})) == []


@pytest.mark.parametrize(
    "deadline", ["9999-12-31T23:59:59-14:00", "2999-01-01T00:00:00+02:00", "0001-01-01T00:00:00+14:00"]
)
def test_a_strange_deadline_harms_nobody(runtime_on: MakeRuntime, deadline: str) -> None:
    strange = RequestSubmitted.model_validate(
        {"job_id": "s", "tenant": "acme", "prompt": "?", "max_tokens": 100, "deadline_at": deadline}
    )
    topics = run(runtime_on, request("a"), strange, request("b", tenant="other"), default=limited(150, "defer"))
    assert {"a", "b"} <= set(passed(topics))


def test_a_tombstone_under_a_key_that_is_no_tenant_is_a_dead_letter(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, record(b"", topic="budgets.config", key=b"\xff no tenant"), request("a"))
    (letter,) = topics.dead_letters()
    assert "is no valid BudgetChanged" in letter.message
    assert passed(topics) == ["a"]


def test_money_is_limited_by_the_price_table(runtime_on: MakeRuntime) -> None:
    prices = Prices({"*": (Decimal(1), Decimal(10))})
    budget_in_money = Budget(windows=(WindowLimit(seconds=DAY, money=Decimal("0.0015")),))
    topics = run(runtime_on, request("a"), request("b"), default=budget_in_money, prices=prices)
    assert passed(topics) == ["a"]
    assert "0.001 money" in topics.dead_letters()[0].message


def test_usage_of_an_unknown_job_is_counted_and_flagged(runtime_on: MakeRuntime) -> None:
    def flagged() -> float:
        return REGISTRY.get_sample_value("headrace_usage_unreserved_total", {"tenant": "stranger"}) or 0.0

    before = flagged()
    used = TokensUsed(job_id="x", tenant="stranger", admission_id="x", root_job_id="x", model="m", prompt_tokens=1)
    topics = run(runtime_on, used)
    assert flagged() == before + 1
    assert topics.dead_letters() == []


def test_a_deferral_is_time_that_its_request_was_held() -> None:
    def held(series: str) -> float:
        labels = {"step": "budget", "state": "held"}
        return REGISTRY.get_sample_value(f"headrace_state_seconds_{series}", labels) or 0.0

    now = T0
    charge = Charge(RequestSubmitted, lambda body: Cost(body.max_tokens, 0), lambda envelope: envelope.job.job_id)
    codec, policy = TypeAdapter(Envelope[RequestSubmitted]), BudgetPolicy(limited(150, "defer"))
    times = STATE_SECONDS.labels("budget", "held")
    tenant = _Tenant(_Step("budget", codec, charge, policy, lambda: now, Cancellations(), times, NoTracing()), None)

    def read(*events: RequestSubmitted | TokensUsed) -> list[Any]:
        envelopes = [Envelope(job_of(each), each, record(each), T0) for each in events]
        return [item for _, item in tenant.on_batch([(each.job.job_id, each) for each in envelopes])[0]]

    admitted, _ = read(request("a"), request("b"))
    count, total = held("count"), held("sum")
    now = T0 + timedelta(seconds=40)
    read(nothing_used("a", "acme", None, admitted.job.admission_id))
    assert (held("count") - count, held("sum") - total) == (1, 40)
