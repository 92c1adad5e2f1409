"""Usage and flows over HTTP: sums, money, budgets, and how far the flows are."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from gateway.parts import Limits
from schemas.budgets import Budget, BudgetChanged, WindowLimit
from schemas.event import utc_now
from schemas.usage import UsageWindowed
from tests.gateway.operated import ACME, UMBRA, Gateway, gateway_on
from tests.gateway.test_lag import commit
from tests.kafka.client import write

HOUR = utc_now().replace(minute=0, second=0, microsecond=0)
PRICES = {"small": (Decimal("0.15"), Decimal("0.6")), "*": (Decimal(10), Decimal(10))}
DEFAULT = Budget(windows=(WindowLimit(seconds=3600, money=Decimal("2.5")),), policy="defer")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = Limits(prices=PRICES, budget=DEFAULT)
    with gateway_on(tmp_path_factory.mktemp("gateway"), limits=limits, groups={"answer": ["h.answer"]}) as gateway:
        gateway.publish(
            used("acme", "small", HOUR - timedelta(hours=1), 1, 1_000_000, 10),
            used("acme", "small", HOUR - timedelta(hours=1), 3, 2_000_000, 1_000_000),  # a later version replaces it
            used("acme", "large", HOUR, 1, 100_000, 0),
            used("umbra", "small", HOUR, 2, 7, 8),
            used("acme", "small", HOUR - timedelta(hours=50), 9, 90, 9),
            used("acme", "small", HOUR.replace(hour=0), 5, 50, 5, window_s=86_400),
            BudgetChanged(
                job_id="budget", tenant="acme", windows=(WindowLimit(seconds=60, tokens=5000),), policy="alert"
            ),
        )
        gateway.eventually(
            "all to be known", lambda: any(each["policy"] == "alert" for each in usage(gateway)["budgets"])
        )
        gateway.eventually("all to be counted", lambda: len(usage(gateway)["windows"]) == 3)
        yield gateway


def used(
    tenant: str, model: str, start: datetime, calls: int, prompt: int, completion: int, *, window_s: int = 3600
) -> UsageWindowed:
    return UsageWindowed(
        tenant=tenant,
        model=model,
        window_start=start,
        window_s=window_s,
        calls=calls,
        prompt_tokens=prompt,
        completion_tokens=completion,
        version=calls,
        closed=False,
    )


def usage(gateway: Gateway, **query: Any) -> Any:
    return gateway.get("/usage", **({"window": "hour"} | query))


def test_a_day_of_hours_is_summed_by_tenant_and_priced_by_model(gateway: Gateway) -> None:
    found = usage(gateway)

    assert [
        (each["tenant"], each["calls"], each["prompt_tokens"], each["completion_tokens"]) for each in found["totals"]
    ] == [("acme", 4, 2_100_000, 1_000_000), ("umbra", 2, 7, 8)]
    money = {each["tenant"]: Decimal(each["money"]) for each in found["totals"]}
    assert money == {"acme": Decimal("1.9"), "umbra": Decimal("0.00000585")}  # 0.3 + 0.6 + 1; as its model costs
    assert [(each["model"], Decimal(each["money"])) for each in found["windows"] if each["tenant"] == "acme"] == [
        ("small", Decimal("0.9")),
        ("large", Decimal(1)),
    ]


def test_a_time_and_a_length_of_windows_may_be_named(gateway: Gateway) -> None:
    since = (HOUR - timedelta(hours=51)).isoformat()
    assert len(usage(gateway, since=since)["windows"]) == 4
    assert [each["calls"] for each in usage(gateway, window="day")["windows"]] == [5]
    status, problem = gateway.ask("GET", "/usage", window="hour", since="1970-01-01T00:00:00Z")
    assert (status, problem["detail"][:20]) == (422, "since: at most 93 da")


def test_a_tenant_sees_its_own_usage_and_budget_alone(gateway: Gateway) -> None:
    found = usage(gateway, key=UMBRA)

    assert [each["tenant"] for each in found["totals"]] == ["umbra"]
    assert [each["tenant"] for each in found["budgets"]] == ["umbra"]
    assert "acme" not in str(found)
    assert gateway.ask("GET", "/usage", UMBRA, tenant="acme")[0] == 403


def test_budgets_are_those_that_hold_and_the_default(gateway: Gateway) -> None:
    budgets = usage(gateway)["budgets"]

    default = {"policy": "defer", "windows": [{"kind": "fixed", "seconds": 3600, "money": "2.5"}]}
    assert budgets == [
        {"tenant": "acme", "policy": "alert", "windows": [{"kind": "fixed", "seconds": 60, "tokens": 5000}]},
        {"tenant": "umbra", **default},
        {"tenant": "*", **default},
    ]


def test_flows_show_their_lag_and_its_history_to_every_tenant(gateway: Gateway) -> None:
    write(gateway.bootstrap, "requests.submitted", [b"{}"] * 5, partition=0)
    commit(gateway.bootstrap, "h.answer", TopicPartition("requests.submitted", 0, 2))
    gateway.lag.sample(100.0)

    (flow,) = gateway.get("/flows", ACME)["flows"]

    assert (flow["flow"], flow["lag"], flow["per_s"], flow["history"]) == ("answer", 3, 0.0, [[100.0, 3, 0.0]])
    assert flow["topics"] == [{"topic": "requests.submitted", "lag": 3, "end": 5, "committed": 2}]
    assert gateway.ask("GET", "/flows", "hr_unknown")[0] == 401
