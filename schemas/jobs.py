"""The jobs.status topic: what is happening to a job."""

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from schemas.event import URL_MAX_CHARS, Identifier, JobEvent, Timestamp, derive_id, utc_now


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    RETRYING = "retrying"
    DEFERRED = "deferred"  # held back by its tenant's budget
    AWAITING_REVIEW = "awaiting_review"
    AWAITING_TOOL = "awaiting_tool"
    COMPLETED = "completed"
    DEAD_LETTERED = "dead_lettered"
    CANCELLED = "cancelled"  # somebody asked for it

    @property
    def terminal(self) -> bool:
        """No step will work on the job again, unless somebody redrives it."""
        return self in {JobState.COMPLETED, JobState.DEAD_LETTERED, JobState.CANCELLED}


class StatusChanged(JobEvent):
    """A step took up, retried, finished or gave up a job. Produced by every flow; keyed by `job_id`.

    Delivery is at least once and steps on different workers may overtake each other: a terminal state outranks any
    other, whatever comes after it, except an event with a later `occurred_at` and a first step (a redrive).
    """

    TYPE: ClassVar[str] = "headrace.job.status.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    state: JobState = Field(description="Where the job stands.")
    step: str = Field(description="The step that speaks: `ingest.embed`.")
    attempt: int = Field(default=1, ge=1, description="Which attempt of this step, from 1.")
    detail: str | None = Field(default=None, description="What a person should know: why it is retried, what failed.")
    retryable: bool = Field(default=False, description="If dead-lettered: a redrive may succeed without a change.")
    needs_review: bool = Field(default=False, description="A person has to decide.")
    resume_at: Timestamp | None = Field(default=None, description="When it goes on, or may be sent again, if known.")
    document_id: str | None = Field(default=None, description="The document, if the job is about one.")
    callback_url: str | None = Field(
        default=None, max_length=URL_MAX_CHARS, description="If this ends the job: where its request wants to be told."
    )
    end_id: Identifier | None = Field(
        default=None, description="If this ends the job: names the end; a replay of it has the same, a later end not."
    )
    occurred_at: Timestamp = Field(default_factory=utc_now, description="When it happened.")

    @property
    def event_id(self) -> str:
        """One id per job, step, state, attempt and detail."""
        return derive_id(self.TYPE, self.job_id, self.step, self.state, str(self.attempt), self.detail or "")
