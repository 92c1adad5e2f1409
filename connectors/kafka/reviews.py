"""The reviews that the topics know, and what became of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from pydantic import ValidationError

from connectors.kafka.reader import TopicReader
from connectors.kafka.record import Record
from schemas.cancellations import CancelRequested
from schemas.errors import Fatal
from schemas.event import JobEvent
from schemas.requests import RequestSubmitted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.tools import ToolRequested
from schemas.topics import topic_of

E = TypeVar("E", bound=JobEvent)

Decision = Literal["approve", "reject"]


@dataclass(frozen=True)
class Review:
    """One stop of a job, and the first decision for it, which counts; or that nobody wants the job any more."""

    requested: ReviewRequested
    decided: ReviewDecided | None = None
    cancelled: bool = False

    def standing(self, now: datetime) -> str:
        """`open`, `expired`, `cancelled`, or how it was decided."""
        if self.decided is not None:
            return "approved" if self.decided.decision == "approve" else "rejected"
        if self.cancelled:
            return "cancelled"
        expires_at = self.requested.expires_at
        return "expired" if expires_at is not None and expires_at <= now else "open"


def read_reviews(bootstrap: str, config: Mapping[str, str] | None = None) -> list[Review]:
    """All reviews, the oldest first. Raises Retryable if no broker answers within 10 s, Fatal if a topic is missing."""
    with TopicReader(bootstrap, config) as reader:
        cancels = _events(reader, CancelRequested) if reader.exists(topic_of(CancelRequested).name) else []
        return reviews_of(_events(reader, ReviewRequested), _events(reader, ReviewDecided), cancels)


def reviews_of(
    requested: Iterable[ReviewRequested], decisions: Iterable[ReviewDecided], cancels: Iterable[CancelRequested] = ()
) -> list[Review]:
    """Each stop with its decision, the oldest first; a decision that names another job is none, as for the guard."""
    cancelled = {(cancel.tenant, cancel.job_id) for cancel in cancels}
    decided: dict[tuple[str, str, str], ReviewDecided] = {}
    for decision in sorted(decisions, key=lambda each: each.decided_at):
        decided.setdefault(_named(decision), decision)
    reviews = {
        each.review_id: Review(each, decided.get(_named(each)), (each.tenant, each.job_id) in cancelled)
        for each in requested
    }
    return sorted(reviews.values(), key=lambda each: (each.requested.requested_at, each.requested.review_id))


def _named(event: ReviewRequested | ReviewDecided) -> tuple[str, str, str]:
    return event.review_id, event.job_id, event.root_job_id


def decision_of(
    review: Review,
    decision: Decision,
    now: datetime,
    *,
    allowed: int | None,
    note: str | None,
    reviewer: str | None,
) -> ReviewDecided:
    """The event. Raises Fatal if the review is over, or `allowed` would stop the job again."""
    stopped = review.requested
    if review.standing(now) != "open":
        raise Fatal(f"review {stopped.review_id} is {review.standing(now)} already")
    if allowed is not None and allowed < stopped.value:
        raise Fatal(f"review {stopped.review_id}: allowed is {allowed}, and its job needs {stopped.value} at least")
    return ReviewDecided(
        job_id=stopped.job_id,
        tenant=stopped.tenant,
        review_id=stopped.review_id,
        root_job_id=stopped.root_job_id,
        decision=decision,
        allowed=allowed,
        note=note,
        reviewer=reviewer,
    )


def read_prompt(bootstrap: str, config: Mapping[str, str] | None, requested: ReviewRequested) -> str | None:
    """The conversation of the request that was stopped; None if its message is gone."""
    topic, partition, offset = requested.origin.rsplit("/", 2)
    with TopicReader(bootstrap, config) as reader:
        record = reader.record_at(topic, int(partition), int(offset))
    request = None if record is None else _request_in(record)
    return None if request is None else "\n".join(f"{turn.role}: {turn.content}" for turn in request.turns)


def _request_in(record: Record) -> RequestSubmitted | None:
    try:
        if record.topic == topic_of(ToolRequested).name:
            return ToolRequested.model_validate_json(record.value or b"").request
        return RequestSubmitted.model_validate_json(record.value or b"")
    except ValidationError:
        return None


def _events(reader: TopicReader, event: type[E]) -> list[E]:
    topic = topic_of(event).name
    if not reader.exists(topic):
        raise Fatal(f"topic {topic} is missing; create it: headrace topics create")
    found: list[E] = []
    for record in reader.records([topic]):
        try:
            found.append(event.model_validate_json(record.value or b""))
        except ValidationError:
            continue  # nothing of ours; the flow makes a dead letter of a decision that cannot be read
    return found
