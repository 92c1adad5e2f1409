"""What the API says about a job: its evidence and the five answers, as JSON."""

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from gateway.read_model import JobRow
from schemas.event import Timestamp
from schemas.explanation import Evidence, Explanation, Standing
from schemas.results import ResultCompleted, Timings, TokenCount

RESULT_INLINE_MAX_BYTES = 64 * 1024
"""A longer result is behind `links.result` alone."""

_LINKS: JsonDict = {
    "self": "/v1/jobs/q-1",
    "result": "/v1/jobs/q-1/result",
    "timeline": "/v1/jobs/q-1/timeline",
    "events": "/v1/jobs/q-1/events",
    "cancel": "/v1/jobs/q-1",
}


def links_of(job_id: str) -> dict[str, str]:
    """Paths of a job. `cancel` is for DELETE."""
    path = f"/v1/jobs/{quote(job_id, safe='')}"
    return {
        "self": path,
        "result": f"{path}/result",
        "timeline": f"{path}/timeline",
        "events": f"{path}/events",
        "cancel": path,
    }


class Accepted(BaseModel):
    """What was sent is durable in Kafka."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"job_id": "q-1", "state": "accepted", "links": _LINKS}]})

    job_id: str = Field(description="Names the job from now on.")
    document_id: str | None = Field(default=None, description="The document, if the job is about one.")
    state: str = Field(default="accepted", description="`accepted`.")
    links: dict[str, str] = Field(description="Where to look for more.")


class RetryView(BaseModel):
    """A dead letter of the job that may be redriven without harm."""

    dead_letter_id: str = Field(description="POST /v1/dead-letters/{id}/redrive does it.")
    why: str = Field(description="Why that may help.")


class DocumentView(BaseModel):
    """The job's document."""

    document_id: str = Field(description="Its id.")
    chunks: int | None = Field(default=None, description="Points in the index, once it is there.")
    indexed_at: Timestamp | None = Field(default=None, description="When it could be found.")
    deleted: bool = Field(default=False, description="It was removed from the index.")


class JobView(BaseModel):
    """A job: where it stands, and the five questions about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "job_id": "q-1",
                    "tenant": "acme",
                    "kind": "request",
                    "state": "running",
                    "ended": False,
                    "cancel_requested": False,
                    "where": "running in answer.infer",
                    "user_sees": "Your request is being processed.",
                    "succeeded": ["answer.retrieve is done"],
                    "retryable": False,
                    "needs_review": False,
                    "retry": [],
                    "escalate": [],
                    "submitted_at": "2026-11-21T12:00:00Z",
                    "updated_at": "2026-11-21T12:00:01Z",
                    "timings": None,
                    "usage": None,
                    "result": None,
                    "document": None,
                    "reviews": [],
                    "links": _LINKS,
                }
            ]
        }
    )

    job_id: str = Field(description="Its id.")
    tenant: str = Field(description="Whose it is.")
    kind: str = Field(description="`request` or `document`.")
    state: Standing = Field(description="Where it stands.")
    ended: bool = Field(description="Nothing more happens by itself.")
    cancel_requested: bool = Field(description="Somebody has asked for its end.")
    where: str = Field(description="The same in words, with the step and the reason.")
    user_sees: str = Field(description="One sentence for whoever has sent it.")
    succeeded: list[str] = Field(description="What is done.")
    retryable: bool = Field(description="A redrive may help, without a change.")
    needs_review: bool = Field(description="A person has to decide.")
    retry: list[RetryView] = Field(description="What can be redriven safely.")
    escalate: list[str] = Field(description="What somebody has to look into.")
    submitted_at: Timestamp = Field(description="When it was submitted, or first heard of.")
    updated_at: Timestamp = Field(description="When it was last heard of.")
    timings: Timings | None = Field(default=None, description="Where the time of the answer went.")
    usage: TokenCount | None = Field(default=None, description="What the answer has cost.")
    result: ResultCompleted | None = Field(
        default=None, description="The answer, if it is there and has at most 65,536 bytes; else see `links.result`."
    )
    document: DocumentView | None = Field(default=None, description="The document, if the job is about one.")
    reviews: list[str] = Field(description="Ids of its reviews, the oldest first.")
    links: dict[str, str] = Field(description="Where to look for more.")


class JobLine(BaseModel):
    """A job in a list."""

    job_id: str = Field(description="Its id.")
    tenant: str = Field(description="Whose it is.")
    kind: str = Field(description="`request` or `document`.")
    state: Standing = Field(description="Where it stands.")
    step: str = Field(description="The step that was heard of last; empty before the first.")
    submitted_at: Timestamp = Field(description="When it was submitted, or first heard of.")
    updated_at: Timestamp = Field(description="When it was last heard of.")
    links: dict[str, str] = Field(description="Where to look for more.")


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobLine] = Field(description="At most `limit` of them.")
    next: str | None = Field(description="Send it as `before` for those that follow; absent at the end.")


class MomentView(BaseModel):
    """One line of a job's story."""

    at: Timestamp = Field(description="When.")
    what: str = Field(description="What happened: a state, or `submitted`, `answered`, `indexed`, `dead letter`.")
    where: str = Field(description="Step or topic.")
    detail: str = Field(description="More about it; may be empty.")


class Timeline(BaseModel):
    """A job's story, the oldest line first."""

    job_id: str = Field(description="The job.")
    timeline: list[MomentView] = Field(description="What happened.")


class Cancelling(BaseModel):
    """The wish is durable; the job ends as soon as its flow hears of it."""

    job_id: str = Field(description="The job.")
    state: Standing = Field(description="Where it stands now.")
    cancel_requested: bool = Field(default=True, description="True.")
    links: dict[str, str] = Field(description="Where to look for more.")


def view_of(row: JobRow, evidence: Evidence, explanation: Explanation, reviews: Sequence[str]) -> JobView:
    """The whole job."""
    result = evidence.result
    inline = result is not None and len(result.encode()) <= RESULT_INLINE_MAX_BYTES
    standing = explanation.standing
    return JobView(
        job_id=evidence.job_id,
        tenant=explanation.tenant,
        kind=explanation.kind,
        state=standing,
        ended=standing.ended,
        cancel_requested=row.cancel_requested,
        where=explanation.where,
        user_sees=explanation.user_sees,
        succeeded=list(explanation.succeeded),
        retryable=bool(explanation.retry),
        needs_review=standing is Standing.AWAITING_REVIEW,
        retry=[RetryView(dead_letter_id=each.dead_letter_id, why=each.why) for each in explanation.retry],
        escalate=list(explanation.escalate),
        submitted_at=row.submitted_at,
        updated_at=row.updated_at,
        timings=None if result is None else result.timings,
        usage=None if result is None else result.usage,
        result=result if inline else None,
        document=_document(row, evidence),
        reviews=list(reviews),
        links=links_of(evidence.job_id),
    )


def _document(row: JobRow, evidence: Evidence) -> DocumentView | None:
    if row.document_id is None:
        return None
    indexed = evidence.indexed
    at: datetime | None = None if indexed is None else indexed.at
    return DocumentView(
        document_id=row.document_id,
        chunks=None if indexed is None else indexed.chunks,
        indexed_at=at,
        deleted=indexed is not None and indexed.deleted,
    )


def line_of(row: JobRow) -> JobLine:
    """The job in a list."""
    return JobLine(
        job_id=row.job_id,
        tenant=row.tenant,
        kind=row.kind,
        state=row.state,
        step=row.step,
        submitted_at=row.submitted_at,
        updated_at=row.updated_at,
        links=links_of(row.job_id),
    )


def timeline_of(explanation: Explanation) -> Timeline:
    """The story."""
    return Timeline(
        job_id=explanation.job_id,
        timeline=[
            MomentView(at=each.at, what=each.what, where=each.where, detail=each.detail)
            for each in explanation.timeline
        ],
    )
