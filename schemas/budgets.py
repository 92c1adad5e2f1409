"""The budgets.config topic: how much a tenant may use."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.event import JobEvent, Timestamp, derive_id, utc_now

MAX_WINDOW_S = 31 * 24 * 3600
MAX_TOKENS = 10**12
MAX_MONEY = Decimal(10) ** 9

_RESOLUTIONS_S = ((120, 1), (2 * 3600, 60), (MAX_WINDOW_S, 3600))


def resolution_s(window_s: int) -> int:
    """Seconds to which use is remembered for windows of that length: 1 up to 2 minutes, 60 up to 2 hours, else 3600."""
    return next(resolution for longest, resolution in _RESOLUTIONS_S if window_s <= longest)


class WindowLimit(BaseModel):
    """A limit on what is used within one window."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fixed", "sliding"] = Field(
        default="fixed",
        description="`fixed`: one after the other, aligned to 1970-01-01 UTC; `sliding`: any span of that length.",
    )
    seconds: Annotated[int, Field(ge=1, le=MAX_WINDOW_S)] = Field(
        description="Length: any up to 120, whole minutes up to 2 hours, whole hours up to 31 days."
    )
    tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        default=None, description="Prompt and completion tokens together."
    )
    money: Annotated[Decimal, Field(ge=0, le=MAX_MONEY, decimal_places=6)] | None = Field(
        default=None, description="In the currency of the price table; needs one."
    )

    @field_validator("seconds")
    @classmethod
    def _whole_units(cls, seconds: int) -> int:
        if seconds % resolution_s(seconds):
            raise ValueError(f"a window of {seconds} s must be a multiple of {resolution_s(seconds)} s")
        return seconds

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.tokens is None and self.money is None:
            raise ValueError("a window limits tokens, money, or both")
        return self


Policy = Literal["reject", "defer", "alert"]

DEFERRED = 1000
"""How many jobs of a tenant may be held back, unless its budget says otherwise."""


class Budget(BaseModel):
    """What a tenant may use, and what becomes of a job that would be too much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows: tuple[WindowLimit, ...] = Field(default=(), max_length=8)
    policy: Policy = "reject"
    max_deferred: Annotated[int, Field(ge=0, le=100_000)] = DEFERRED


class BudgetChanged(JobEvent):
    """A tenant's budget from now on. Produced by whoever manages tenants, read by `answer`; keyed by `tenant`.

    It replaces the former one as a whole; of two, the one that was decided later holds. Without `windows`, and after a
    tombstone, the default applies again.
    """

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(required=[]))

    TYPE: ClassVar[str] = "headrace.budget.changed.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    windows: tuple[WindowLimit, ...] | None = Field(
        default=None, max_length=8, description="All of them hold at once. None at all, `[]`: no limit."
    )
    policy: Policy = Field(
        default="reject",
        description="Over budget: give the job up, hold it back until there is room, or only say so.",
    )
    max_deferred: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=DEFERRED, description="How many jobs may be held back at once; more are given up."
    )
    changed_at: Timestamp = Field(
        default_factory=utc_now,
        description="When it was decided; if absent, or later than that, the time of its message in Kafka.",
    )

    @model_validator(mode="before")
    @classmethod
    def _derive_id(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "job_id" in data:
            return data
        return {**data, "job_id": derive_id("budget", str(data.get("tenant", "default")), repr(data.get("changed_at")))}

    @property
    def key(self) -> str:
        """Changes of a tenant's budget keep their order."""
        return self.tenant

    @property
    def budget(self) -> Budget | None:
        """None: the default."""
        if self.windows is None:
            return None
        return Budget(windows=self.windows, policy=self.policy, max_deferred=self.max_deferred)

    def written(self, at: datetime) -> Self:
        """As it was when its message was written: the same whenever that is read, and never from the future."""
        said = self.changed_at if "changed_at" in self.model_fields_set else at
        return self.model_copy(update={"changed_at": min(said, at)})

    @classmethod
    def of_tombstone(cls, key: bytes | None) -> Self | None:
        """A deleted record takes the tenant back to the default."""
        return None if key is None else cls.model_validate({"tenant": key.decode(errors="replace")})
