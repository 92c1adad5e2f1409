"""Events to Kafka: the way out of a flow for what worked.

Guarantee: an event taken is delivered before the flow's next snapshot, or the flow stops. State: none.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.kafka.record import OutgoingRecord
from operators.envelope import Envelope
from operators.outcome import flow_step
from operators.runtime import Runtime
from schemas.event import Event
from schemas.jobs import JobState, StatusChanged
from schemas.topics import topic_of

E = TypeVar("E", bound=Event)


def outgoing(event: Event, *, step: str, topic: str | None = None, traceparent: str | None = None) -> OutgoingRecord:
    """The record of an event: its topic (by the catalogue, unless given), key, JSON and CloudEvents headers."""
    headers = event.headers(source=f"headrace/{step}", traceparent=traceparent)
    return OutgoingRecord(topic or topic_of(type(event)).name, event.key_bytes, event.encode(), headers)


@operator
def produce(
    step_id: str,
    up: KeyedStream[Envelope[E]],
    event: type[E],
    runtime: Runtime,
    published: Callable[[Sequence[str]], Awaitable[None]] | None = None,
    before: Callable[[Envelope[E]], Iterable[Event]] | None = None,
) -> None:
    """Write each body to the topic of `event`; where that topic ends the job, its status becomes completed.

    `published` is called with the keys of events that the broker has acknowledged; nobody waits for it. What `before`
    gives is written before the event itself, so that it is there when that is published.
    """
    step = flow_step(step_id)
    topic = topic_of(event)
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
            yield from (outgoing(each, step=step) for each in before(envelope))
        yield outgoing(envelope.body, step=step, traceparent=envelope.record.header("traceparent"))
        if ends_job:  # after the result, on the same producer: who sees "completed" can read the result
            job = envelope.job
            yield outgoing(
                StatusChanged(
                    job_id=job.job_id,
                    tenant=job.tenant,
                    document_id=job.document_id,
                    state=JobState.COMPLETED,
                    step=step,
                ),
                step=step,
            )

    op.output("write", op.flat_map_value("records", up, records), runtime.topics.sink(delivered))
