"""The callbacks.deferred topic: what is to be told about ended jobs, at once or again later."""

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from schemas.event import URL_MAX_CHARS, Identifier, JobEvent, Timestamp, derive_id

Ending = Literal["job.completed", "job.dead_lettered", "job.cancelled"]
"""What a callback tells, as Standard Webhooks name event types."""


class CallbackDeferred(JobEvent):
    """A callback that is to be made. Produced and consumed by `webhooks`; keyed by `job_id`.

    Every callback begins here, before its first attempt, so that all of its dead letters can be redriven from here.
    """

    TYPE: ClassVar[str] = "headrace.callback.deferred.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    callback_id: Identifier = Field(description="The same for every attempt: the receiver drops repeats by it.")
    url: str = Field(max_length=URL_MAX_CHARS, description="Where to post.")
    ending: Ending = Field(description="How the job ended.")
    data: dict[str, JsonValue] = Field(description="What is told about it.")
    ended_at: Timestamp = Field(description="When the job ended.")
    attempts: int = Field(ge=0, description="How often it was tried.")
    not_before: Timestamp = Field(description="When to try it, again or for the first time.")
    failure: str = Field(description="Why the last attempt failed; empty before the first one.")

    @property
    def event_id(self) -> str:
        """One id per callback and attempt."""
        return derive_id(self.TYPE, self.job_id, self.callback_id, str(self.attempts))
