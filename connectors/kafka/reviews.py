"""The reviews that the topics know, and what became of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from connectors.kafka.reader import TopicReader
from connectors.kafka.record import Record
from schemas.errors import Fatal
from schemas.event import JobEvent
from schemas.requests import RequestSubmitted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.tools import ToolRequested
from schemas.topics import topic_of

E = TypeVar("E", bound=JobEvent)


@dataclass(frozen=True)
class Review:
    """One stop of a job, and the decision that counts: the first."""

    requested: ReviewRequested
    decided: ReviewDecided | None = None

    def standing(self, now: datetime) -> str:
        """`open`, `expired`, or how it was decided."""
        if self.decided is not None:
            return "approved" if self.decided.decision == "approve" else "rejected"
        expires_at = self.requested.expires_at
        return "expired" if expires_at is not None and expires_at <= now else "open"


def read_reviews(bootstrap: str, config: Mapping[str, str] | None = None) -> list[Review]:
    """All reviews, the oldest first. Raises Retryable if no broker answers within 10 s, Fatal if a topic is missing."""
    with TopicReader(bootstrap, config) as reader:
        requested = _events(reader, ReviewRequested)
        decided: dict[str, ReviewDecided] = {}
        for decision in sorted(_events(reader, ReviewDecided), key=lambda each: each.decided_at):
            decided.setdefault(decision.review_id, decision)
    reviews = {each.review_id: Review(each, decided.get(each.review_id)) for each in requested}
    return sorted(reviews.values(), key=lambda each: (each.requested.requested_at, each.requested.review_id))


def read_prompt(bootstrap: str, config: Mapping[str, str] | None, requested: ReviewRequested) -> str | None:
    """The conversation of the request that was stopped; None if its message is gone."""
    topic, partition, offset = requested.origin.rsplit("/", 2)
    with TopicReader(bootstrap, config) as reader:
        for record in reader.records([topic]) if reader.exists(topic) else ():
            if (record.partition, record.offset) == (int(partition), int(offset)):
                request = _request_in(record)
                return None if request is None else "\n".join(f"{turn.role}: {turn.content}" for turn in request.turns)
    return None


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
