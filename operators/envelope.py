"""What travels between operators: a body, the job it belongs to, and the message that it came from."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic, TypeVar, cast

from connectors.kafka.record import Record
from schemas.errors import Bill
from schemas.event import JobEvent
from schemas.requests import RequestSubmitted
from schemas.tools import ToolRequested

X = TypeVar("X")
Y = TypeVar("Y")
E = TypeVar("E", bound=JobEvent)


@dataclass(frozen=True)
class Job:
    """Who the work is for."""

    job_id: str
    tenant: str
    document_id: str | None = None
    deadline: datetime | None = None  # after this the work is of no use
    depth: int = 0  # how many inferences led to it
    root: str | None = None  # the job at the top of its chain, if that is another one
    admission_id: str | None = None  # what its tenant's budget has reserved for it
    billed: Bill | None = None  # what calls have cost under this admission whose answers were refused
    callback_url: str | None = None  # who is to be told when it ends


@dataclass(frozen=True)
class Envelope(Generic[X]):
    """A body on its way through a flow. It keeps the original message, so that any step can dead-letter it whole."""

    job: Job
    body: X
    record: Record
    received_at: datetime  # when the flow took the message up

    def carrying(self, body: Y) -> "Envelope[Y]":
        """The same job with another body."""
        return cast("Envelope[Y]", replace(self, body=body))  # type: ignore[arg-type]  # replace() cannot change X to Y

    def admitted(self, admission_id: str) -> "Envelope[X]":
        """The same under an admission. Spelled out: replace() takes three times as long, and every request comes by."""
        job = self.job
        admitted = Job(
            job.job_id,
            job.tenant,
            job.document_id,
            job.deadline,
            job.depth,
            job.root,
            admission_id,
            callback_url=job.callback_url,
        )
        return Envelope(admitted, self.body, self.record, self.received_at)


def job_of(event: JobEvent) -> Job:
    """The job that an event names."""
    if isinstance(event, RequestSubmitted):
        return Job(
            event.job_id,
            event.tenant,
            None,
            event.deadline_at,
            event.depth,
            event.root,
            callback_url=event.callback_url,
        )
    document_id: str | None = getattr(event, "document_id", None)
    callback_url = event.request.callback_url if isinstance(event, ToolRequested) else None
    return Job(event.job_id, event.tenant, document_id, event.deadline, callback_url=callback_url)
