"""The catalogue: which event lives on which topic, under which key, and for how long."""

from dataclasses import dataclass
from typing import Literal

from schemas.budgets import BudgetChanged
from schemas.callbacks import CallbackDeferred
from schemas.cancellations import CancelRequested
from schemas.dead_letter import DeadLetter, DeadLetterRedriven
from schemas.deltas import TextDelta
from schemas.documents import DocumentEmbedded, DocumentExtracted, DocumentIndexed, DocumentUploaded
from schemas.event import Event
from schemas.jobs import StatusChanged
from schemas.notifications import BucketNotified
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.tools import ToolCompleted, ToolRequested
from schemas.usage import TokensUsed, UsageWindowed

FOREVER = -1
"""Kafka's own value for a retention without end."""

HOUR_MS = 60 * 60 * 1000
DAY_MS = 24 * HOUR_MS
DEAD_LETTER_MAX_BYTES = 4 * 1024 * 1024
"""A dead letter carries its message in base64: the largest that a broker takes by default, 1 MiB, makes 1.4 MiB. A
broker measures what is compressed, so a message may be far larger: then its letter leaves it out."""

EVENT_MAX_BYTES = 1_000_000
"""Of an event's JSON. A broker takes batches of 1,048,588 bytes by default, key, headers and framing included."""


@dataclass(frozen=True)
class Topic:
    """One topic of the catalogue."""

    name: str
    event: type[Event]
    key: str  # the field that is the message key, or "any"
    cleanup: Literal["delete", "compact", "compact,delete"]
    retention_ms: int
    produced: bool = True  # our flows write it
    ends_job: bool = False  # an event here means that its job is completed
    consumed: bool = False  # our flows read it, so what they give up on goes to `<name>.dlq`

    @property
    def config(self) -> dict[str, str]:
        """Topic settings for the broker."""
        settings = {"cleanup.policy": self.cleanup, "retention.ms": str(self.retention_ms)}
        if self.event is DeadLetter:
            settings["max.message.bytes"] = str(DEAD_LETTER_MAX_BYTES)
        return settings


CATALOGUE: tuple[Topic, ...] = (
    Topic("documents.notified", BucketNotified, "any", "delete", 7 * DAY_MS, produced=False, consumed=True),
    Topic("documents.uploaded", DocumentUploaded, "document_id", "delete", 7 * DAY_MS, consumed=True),
    Topic("documents.extracted", DocumentExtracted, "document_id", "delete", 3 * DAY_MS, consumed=True),
    Topic("documents.embedded", DocumentEmbedded, "document_id", "delete", 3 * DAY_MS, consumed=True),
    Topic("documents.indexed", DocumentIndexed, "document_id", "delete", 7 * DAY_MS, ends_job=True),
    Topic("requests.submitted", RequestSubmitted, "job_id", "delete", 7 * DAY_MS, produced=False, consumed=True),
    Topic("results.completed", ResultCompleted, "job_id", "compact,delete", 30 * DAY_MS, ends_job=True, consumed=True),
    Topic("results.delta", TextDelta, "job_id", "delete", HOUR_MS),
    Topic("jobs.status", StatusChanged, "job_id", "compact,delete", 30 * DAY_MS, consumed=True),
    Topic("usage.tokens", TokensUsed, "tenant", "delete", 31 * DAY_MS, consumed=True),
    Topic("usage.windows", UsageWindowed, "tenant, window_start, model", "compact", FOREVER),
    Topic("budgets.config", BudgetChanged, "tenant", "compact", FOREVER, produced=False, consumed=True),
    Topic("reviews.requested", ReviewRequested, "job_id", "compact,delete", 90 * DAY_MS),
    Topic("reviews.decided", ReviewDecided, "job_id", "compact,delete", 90 * DAY_MS, produced=False, consumed=True),
    Topic("tools.requested", ToolRequested, "job_id", "delete", 7 * DAY_MS, consumed=True),
    Topic("tools.completed", ToolCompleted, "job_id", "delete", 7 * DAY_MS, consumed=True),
    Topic("cancellations.requested", CancelRequested, "job_id", "compact,delete", 7 * DAY_MS, produced=False),
    Topic("callbacks.deferred", CallbackDeferred, "job_id", "delete", 7 * DAY_MS, consumed=True),
    Topic("dead_letters.redriven", DeadLetterRedriven, "dead_letter_id", "compact,delete", 90 * DAY_MS),
)
"""Every topic but the dead-letter topics, which follow from it."""


def dead_letter_topic(name: str) -> str:
    """Where messages of topic `name` go that a flow gave up on."""
    return f"{name}.dlq"


def dead_letter_topics() -> tuple[Topic, ...]:
    """A dead-letter topic for every topic that our flows read; kept long, so that a person has time to look."""
    return tuple(
        Topic(dead_letter_topic(topic.name), DeadLetter, "original key", "delete", 90 * DAY_MS)
        for topic in CATALOGUE
        if topic.consumed
    )


def topic_of(event: type[Event]) -> Topic:
    """The topic of an event. A dead letter has none of its own: it goes to `<topic>.dlq` of its original message."""
    for topic in CATALOGUE:
        if topic.event is event:
            return topic
    raise LookupError(f"{event.__name__} is on no topic; the catalogue in schemas/topics.py lists those that are")
