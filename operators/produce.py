"""Events to Kafka: the way out of a flow for what worked.

Guarantee: an event taken is delivered before the flow's next snapshot, or the flow stops. State: none. Dead letters,
which it writes itself: a message whose event is larger than its topic takes, and would stop the flow at every restart.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from prometheus_client import Counter

from connectors.kafka.record import OutgoingRecord, outgoing
from connectors.tracing.port import Tracer
from operators.envelope import Envelope
from operators.outcome import bury, flow_step
from operators.runtime import Runtime
from operators.traced import caused, settled, settled_as_letter, trace_of_letter
from operators.write import write
from schemas.dead_letter import DeadLetter
from schemas.errors import Poison
from schemas.event import Event
from schemas.jobs import JobState, StatusChanged
from schemas.topics import DEAD_LETTER_MAX_BYTES, EVENT_MAX_BYTES, dead_letter_topic, topic_of
from schemas.usage import nothing_used

E = TypeVar("E", bound=Event)

DEAD_LETTERS = Counter(
    "headrace_dead_letters_total",
    "Dead letters written, by the topic that the message came from and the step that gave it up.",
    ["topic", "step", "error_class"],
)
FRAMING_BYTES = 16 * 1024  # what a record has besides key and value: its headers, and Kafka's own fields; some 600


def letter_records(buried: DeadLetter, *, step: str, tracer: Tracer) -> Iterator[OutgoingRecord]:
    """A dead letter, and what it means for its job: nothing stays reserved for it, and its status is the last one."""
    settled_as_letter(buried, tracer=tracer)
    trace = trace_of_letter(buried, tracer)
    letter = buried.fitting(DEAD_LETTER_MAX_BYTES - FRAMING_BYTES)
    DEAD_LETTERS.labels(letter.topic, letter.step, letter.error_class).inc()
    if letter.admission_id is not None:  # what its tenant's budget has reserved for it was not used,
        used = nothing_used(letter.job_id, letter.tenant, None, letter.admission_id)
        if letter.usage is not None:  # but for answers that were refused
            used = used.model_copy(update={"model": letter.model} | letter.usage.model_dump())
        yield outgoing(used, step=step, trace=trace)
    yield outgoing(letter, step=step, topic=dead_letter_topic(letter.topic), trace=trace)
    if not letter.ends_job:
        return
    yield outgoing(
        StatusChanged(
            job_id=letter.job_id,
            tenant=letter.tenant,
            document_id=letter.document_id,
            state=JobState.DEAD_LETTERED,
            step=letter.step,
            attempt=letter.attempts,
            detail=letter.message,
            retryable=letter.retryable,
            callback_url=letter.callback_url,
            end_id=None if letter.callback_url is None else letter.event_id,
        ),
        step=step,
        trace=trace,
    )


@operator
def produce(
    step_id: str,
    up: KeyedStream[Envelope[E]],
    event: type[E],
    runtime: Runtime,
    published: Callable[[Sequence[str]], Awaitable[None]] | None = None,
    before: Callable[[Envelope[E]], Iterable[Event]] | None = None,
    *,
    beside: bool = False,
) -> None:
    """Write each body to the topic of `event`; where that topic ends the job, its status becomes completed.

    A body that is too large for it is a dead letter instead, whatever the topic's own max.message.bytes.

    `published` is called with the keys of events that the broker has acknowledged; nobody waits for it. What `before`
    gives is written before the event itself, so that it is there when that is published. `beside`: these events are not
    what becomes of their message, which goes on elsewhere.
    """
    step = flow_step(step_id)
    topic = topic_of(event)
    tracer = runtime.tracer
    ends_job = topic.ends_job

    async def tell(keys: Sequence[str]) -> None:
        if published is not None:
            await published(keys)

    def delivered(records: Sequence[OutgoingRecord]) -> None:
        keys = [record.key.decode() for record in records if record.topic == topic.name]
        if keys and published is not None:
            runtime.loop.submit(tell(keys))

    def records(envelope: Envelope[E]) -> Iterable[OutgoingRecord]:
        if before is not None:
            yield from (caused(each, envelope, step=step, tracer=tracer) for each in before(envelope))
        job = envelope.job
        record = caused(envelope.body, envelope, step=step, tracer=tracer)
        if len(record.value) > EVENT_MAX_BYTES:
            size = f"{len(record.value):,} bytes, and {topic.name} takes {EVENT_MAX_BYTES:,}"
            error = Poison(f"its {event.__name__} would have {size}: ask for less at once")
            charged = job if before is None else replace(job, admission_id=None)  # by what came before
            letter = bury(charged, envelope.record, error, step=step, received_at=envelope.received_at)
            yield from letter_records(letter, step=step, tracer=tracer)
            return
        yield record
        if ends_job:  # after the result, on the same producer: who sees "completed" can read the result
            completed = StatusChanged(
                job_id=job.job_id,
                tenant=job.tenant,
                document_id=job.document_id,
                state=JobState.COMPLETED,
                step=step,
            )
            yield caused(completed, envelope, step=step, tracer=tracer)
        if not beside:
            settled(envelope, step=step, outcome="completed" if ends_job else "passed_on", tracer=tracer)

    write("write", op.flat_map_value("records", up, records), runtime, delivered)
