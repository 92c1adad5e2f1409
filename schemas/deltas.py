"""The results.delta topic: an answer while it is written."""

from typing import ClassVar

from pydantic import Field

from schemas.event import Identifier, JobEvent, Timestamp, derive_id, utc_now


class TextDelta(JobEvent):
    """A piece of a job's answer, as the model writes it. Produced by `answer`; keyed by `job_id`.

    A call of the model numbers its deltas from 0. A delta with the number 0 begins anew: what a reader has of another
    call of the job is void, and deltas of that one that come later as well. The topic is for those who watch: after a
    crash deltas may be missing, and the result has the whole text.
    """

    TYPE: ClassVar[str] = "headrace.result.delta.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    call_id: Identifier = Field(description="Names one call of the model: another attempt has another one.")
    attempt: int = Field(default=1, ge=1, description="Which attempt of this inference, as in its statuses.")
    number: int = Field(ge=0, description="Position within the call, from 0.")
    text: str = Field(description="What was written since the delta before.")
    last: bool = Field(default=False, description="The call ended well with this delta, whose text may be empty.")
    written_at: Timestamp = Field(default_factory=utc_now, description="When it was written.")

    @property
    def event_id(self) -> str:
        """One id per call and number."""
        return derive_id(self.TYPE, self.job_id, self.call_id, str(self.number))
