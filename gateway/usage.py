"""Usage over HTTP: what tenants have used, window by window, what that costs, and what they may use.

The sums are those of the `usage` flow; money is what the prices say that are configured now.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from gateway.keys import ALL, Authenticated, Caller
from gateway.problems import Problem, responses
from gateway.read_model import ReadModel
from schemas.budgets import Budget, Policy, WindowLimit
from schemas.event import Timestamp, utc_now
from schemas.prices import MONEY_UNITS, Prices
from schemas.usage import UsageWindowed

SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
SHOWN = {"hour": timedelta(days=1), "day": timedelta(days=31)}
"""Without `since`."""
MOST = {"hour": timedelta(days=93), "day": timedelta(days=3660)}
"""An answer has a row for each tenant, model and window."""


_EXAMPLE: JsonDict = {
    "windows": [
        {
            "tenant": "acme",
            "model": "small",
            "window_start": "2026-01-31T00:00:00Z",
            "window_s": 86_400,
            "calls": 12,
            "prompt_tokens": 30_000,
            "completion_tokens": 4000,
            "estimated_calls": 0,
            "version": 12,
            "closed": False,
            "money": "0.0069",
        }
    ],
    "totals": [{"tenant": "acme", "calls": 12, "prompt_tokens": 30_000, "completion_tokens": 4000, "money": "0.0069"}],
    "budgets": [
        {"tenant": "acme", "policy": "defer", "windows": [{"kind": "fixed", "seconds": 86_400, "tokens": 1_000_000}]}
    ],
}


class WindowShown(UsageWindowed):
    """A window, and what it cost."""

    money: Decimal | None = Field(description="In the currency of the price table; absent without one.")


class UsageTotal(BaseModel):
    """The sum of a tenant's windows."""

    tenant: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    money: Decimal | None = Field(description="In the currency of the price table; absent without one.")


class BudgetShown(BaseModel):
    """What a tenant may use."""

    tenant: str = Field(description="`*`: every tenant that has no budget of its own.")
    policy: Policy = Field(description="What becomes of a job that would be too much.")
    windows: list[WindowLimit] = Field(description="All of them hold at once; none: there is no limit.")


class Usage(BaseModel):
    """What was used, and what may be."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    windows: list[WindowShown] = Field(description="The oldest first.")
    totals: list[UsageTotal] = Field(description="By tenant.")
    budgets: list[BudgetShown] = Field(
        description="Of tenants that have one, used something, or were asked for; `*`: all others'."
    )


class UsageRoutes:
    """The route. default: the budget of tenants without one."""

    def __init__(self, read_model: ReadModel, prices: Prices, default: Budget) -> None:
        self._read_model = read_model
        self._prices = prices
        self._default = default

    def router(self) -> APIRouter:
        """Under /v1."""
        router = APIRouter(tags=["usage"])
        router.add_api_route("/usage", self.show_usage, responses=responses(), response_model_exclude_none=True)
        return router

    def show_usage(
        self,
        caller: Authenticated,
        tenant: str | None = None,
        window: Literal["hour", "day"] = "day",
        since: Annotated[
            Timestamp | None,
            Query(description="Windows that end later; by default, the last 24 hours or 31 days."),
        ] = None,
    ) -> Usage:
        """What tenants have used, and what they may use."""
        scope = caller.scope(tenant)
        windows = self._windows(scope, window, since)
        totals = [self._total(name, windows) for name in sorted({each.tenant for each in windows})]
        return Usage(windows=windows, totals=totals, budgets=self._budgets(caller, scope, totals))

    def _windows(self, scope: str | None, window: str, since: datetime | None) -> list[WindowShown]:
        now, span = utc_now(), SPANS[window]
        begin = now - SHOWN[window] if since is None else since
        if now - begin > MOST[window]:
            raise Problem(
                422, "invalid", f"since: at most {MOST[window].days} days ago for windows of one {window}; ask for days"
            )
        found = self._read_model.usage(tenant=scope, since=begin, window_s=int(span.total_seconds()))
        return [WindowShown(**dict(each), money=self._money(each)) for each in found]

    def _money(self, window: UsageWindowed) -> Decimal | None:
        if not self._prices.by_model:
            return None
        units = self._prices.money(window.model, window.prompt_tokens, window.completion_tokens)
        return Decimal(units) / MONEY_UNITS

    def _total(self, tenant: str, windows: list[WindowShown]) -> UsageTotal:
        own = [each for each in windows if each.tenant == tenant]
        return UsageTotal(
            tenant=tenant,
            calls=sum(each.calls for each in own),
            prompt_tokens=sum(each.prompt_tokens for each in own),
            completion_tokens=sum(each.completion_tokens for each in own),
            money=sum((each.money or Decimal() for each in own), Decimal()) if self._prices.by_model else None,
        )

    def _budgets(self, caller: Caller, scope: str | None, totals: list[UsageTotal]) -> list[BudgetShown]:
        own = {each.tenant: each.budget for each in self._read_model.budgets(tenant=scope)}
        named = own.keys() | {total.tenant for total in totals} | (set() if scope is None else {scope})
        budgets = [_shown(tenant, own.get(tenant) or self._default) for tenant in sorted(named)]
        return [*budgets, _shown(ALL, self._default)] if caller.sees_all else budgets


def _shown(tenant: str, budget: Budget) -> BudgetShown:
    return BudgetShown(tenant=tenant, policy=budget.policy, windows=list(budget.windows))
