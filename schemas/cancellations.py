"""The cancellations.requested topic: jobs that nobody wants any more."""

from typing import ClassVar

from pydantic import Field

from schemas.event import JobEvent, Timestamp, utc_now

REASON_MAX_CHARS = 2000


class CancelRequested(JobEvent):
    """A job is to end without a result. Produced by the gateway, or any other client; read by every flow.

    It holds for jobs of its own tenant alone, and for good: what is submitted again under this `job_id` ends as well.
    A job that ends before a flow has heard of it stays as it ended.
    """

    TYPE: ClassVar[str] = "headrace.cancel.requested.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    reason: str | None = Field(
        default=None, max_length=REASON_MAX_CHARS, description="Why; becomes part of the job's status."
    )
    requested_at: Timestamp = Field(default_factory=utc_now, description="When.")
