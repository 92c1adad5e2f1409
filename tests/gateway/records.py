"""Events as records of their topics, without a broker."""

from collections import Counter
from datetime import datetime

from connectors.kafka.record import Record
from schemas.dead_letter import DeadLetter
from schemas.deltas import TextDelta
from schemas.event import Event, utc_now
from schemas.jobs import JobState, StatusChanged
from schemas.results import ResultCompleted, Timings, TokenCount
from schemas.topics import dead_letter_topic, topic_of


def record(
    event: Event, offset: int, *, at: datetime | None = None, headers: tuple[tuple[str, bytes], ...] = ()
) -> Record:
    """The event on partition 0 of its topic."""
    topic = dead_letter_topic(event.topic) if isinstance(event, DeadLetter) else topic_of(type(event)).name
    at = at or utc_now()
    written_at = at.replace(microsecond=at.microsecond // 1000 * 1000)  # Kafka's timestamps have milliseconds
    return Record(topic, 0, offset, event.key_bytes, event.encode(), headers, written_at)


def records(*events: Event) -> list[Record]:
    """The events, each the next one of its topic, which has nothing else."""
    offsets: Counter[str] = Counter()
    made: list[Record] = []
    for event in events:
        named = record(event, 0).topic
        made.append(record(event, offsets[named]))
        offsets[named] += 1
    return made


def status(
    job_id: str, state: JobState = JobState.RUNNING, *, step: str = "answer.infer", tenant: str = "acme"
) -> StatusChanged:
    return StatusChanged(job_id=job_id, tenant=tenant, state=state, step=step)


def delta(job_id: str, call_id: str, number: int, *, last: bool = False) -> TextDelta:
    return TextDelta(job_id=job_id, tenant="acme", call_id=call_id, number=number, text=f"{number} ", last=last)


def result(job_id: str, call_id: str | None = None, *, text: str = "Forty.", tenant: str = "acme") -> ResultCompleted:
    return ResultCompleted(
        job_id=job_id,
        tenant=tenant,
        kind="answer",
        text=text,
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=10, completion_tokens=2),
        call_id=call_id,
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=1),
    )
