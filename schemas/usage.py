"""The usage.* topics: what inferences cost, call by call and by window."""

from typing import ClassVar

from pydantic import Field

from schemas.event import Event, Identifier, JobEvent, Timestamp, derive_id, utc_now


class TokensUsed(JobEvent):
    """What one admitted inference has used, or that it used nothing since it failed. Keyed by `tenant`.

    Produced by `answer` once for every inference that was let through, whatever became of it; read by `answer` itself,
    whose budgets it settles, and by `usage`. A replay has the same `ce_id`: count each id once.
    """

    TYPE: ClassVar[str] = "headrace.usage.tokens.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    admission_id: Identifier = Field(description="One inference of the job: names what was reserved for it.")
    root_job_id: Identifier = Field(description="The job at the top of the chain; the job itself if it has no parent.")
    model: str | None = Field(default=None, description="The model that answered; absent if none did.")
    prompt_tokens: int = Field(default=0, ge=0, description="Tokens read.")
    completion_tokens: int = Field(default=0, ge=0, description="Tokens written.")
    estimated: bool = Field(default=False, description="The provider reported no usage; these are counted on our side.")
    used_at: Timestamp = Field(default_factory=utc_now, description="When the call ended.")

    @property
    def key(self) -> str:
        """A tenant's usage keeps its order."""
        return self.tenant

    @property
    def event_id(self) -> str:
        """One id per inference."""
        return derive_id(self.TYPE, self.tenant, self.admission_id)

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompt_tokens + self.completion_tokens


def nothing_used(job_id: str, tenant: str, root: str | None, admission_id: str) -> TokensUsed:
    """That an admission ended without a call."""
    return TokensUsed(job_id=job_id, tenant=tenant, root_job_id=root or job_id, admission_id=admission_id)


class UsageWindowed(Event):
    """What a tenant has used of a model in one window, so far. Produced by `usage`; the topic is compacted.

    Each version replaces the former ones: of two records of one key, the one with the higher `version` holds, or the
    later one if they are equal.
    """

    TYPE: ClassVar[str] = "headrace.usage.window.v1"

    model: str = Field(description="The model that answered.")
    window_start: Timestamp = Field(description="First moment of the window, in event time.")
    window_s: int = Field(gt=0, description="Its length in seconds.")
    calls: int = Field(ge=0, description="Inferences that ended in it.")
    prompt_tokens: int = Field(ge=0, description="Tokens read.")
    completion_tokens: int = Field(ge=0, description="Tokens written.")
    estimated_calls: int = Field(default=0, ge=0, description="Of the calls, those whose tokens are estimated.")
    version: int = Field(
        ge=1, description="Grows with each change of the window, with gaps; never less for more calls."
    )
    closed: bool = Field(description="The window's time is over; a late event still makes a new version.")

    @property
    def key(self) -> str:
        """One key per tenant, model and window."""
        return f"{self.tenant}|{self.window_s}|{self.window_start.isoformat()}|{self.model}"

    @property
    def event_id(self) -> str:
        """One id per version."""
        return derive_id(self.TYPE, self.key, str(self.version))
