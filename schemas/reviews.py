"""The reviews.* topics: what a guard has stopped, and what a person has decided."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.event import Identifier, JobEvent, Timestamp, derive_id, utc_now

NOTE_MAX_CHARS = 2000
REVIEWER_MAX_CHARS = 256

Limit = Literal["depth", "age", "jobs", "tokens", "repeats", "prompt_size"]


class Ancestor(BaseModel):
    """A job above the one that was stopped."""

    model_config = ConfigDict(frozen=True)

    job_id: Identifier = Field(description="Its id.")
    depth: int = Field(ge=0, description="How many inferences led to it.")


class ReviewRequested(JobEvent):
    """A job was stopped by a guard, and a person has to decide. Produced by `answer`; keyed by `job_id`."""

    TYPE: ClassVar[str] = "headrace.review.requested.v1"

    review_id: Identifier = Field(description="Names this stop of the job; the decision repeats it.")
    root_job_id: Identifier = Field(description="The job at the top of the chain.")
    limit: Limit = Field(description="Which limit was reached.")
    value: int = Field(ge=0, description="What the job would have made of it.")
    allowed: int = Field(ge=0, description="What the limit allows.")
    reason: str = Field(description="The same as a sentence.")
    depth: int = Field(ge=0, description="How many inferences led to this one.")
    ancestors: tuple[Ancestor, ...] = Field(default=(), description="From the root to the parent, as far as known.")
    prompt_chars: int = Field(ge=0, description="Size of the prompt; the prompt is on the request's own topic.")
    origin: str = Field(description="The request's message: topic/partition/offset.")
    expires_at: Timestamp | None = Field(default=None, description="Without a decision the job is given up then.")
    requested_at: Timestamp = Field(default_factory=utc_now, description="When it was stopped.")

    @property
    def event_id(self) -> str:
        """One id per stop."""
        return derive_id(self.TYPE, self.job_id, self.review_id)


class ReviewDecided(JobEvent):
    """A person's decision. Produced by `headrace reviews`, or any other client; keyed by `job_id`."""

    TYPE: ClassVar[str] = "headrace.review.decided.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    review_id: Identifier = Field(description="Of the ReviewRequested.")
    root_job_id: Identifier = Field(description="Of the ReviewRequested.")
    decision: Literal["approve", "reject"] = Field(description="`approve`: the job goes on, once; `reject`: it ends.")
    allowed: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="With `approve`: the limit for this root from now on; what this job needs is the least.",
    )
    note: str | None = Field(
        default=None, max_length=NOTE_MAX_CHARS, description="Why; becomes part of the job's status."
    )
    reviewer: str | None = Field(default=None, max_length=REVIEWER_MAX_CHARS, description="Who decided.")
    decided_at: Timestamp = Field(default_factory=utc_now, description="When.")

    @property
    def event_id(self) -> str:
        """One id per decision of a stop."""
        return derive_id(self.TYPE, self.job_id, self.review_id, self.decision)
