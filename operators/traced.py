"""Traces across flows: every record that a message causes is in the message's trace.

What a flow makes of one message is one span, from its reading to its result or dead letter. Its id is derived, from the
message's place and the flow, so that it needs no state: after a restart it is the same, and whatever has been said
meanwhile belongs to it. It is recorded where the message leaves the flow. A crash between that and the next snapshot
records it again, under the same id. Where nothing is recorded, each record carries the context that the message had.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from connectors.kafka.record import OutgoingRecord, outgoing
from connectors.tracing.port import Attribute, Span, Tracer
from operators.envelope import Envelope
from schemas.dead_letter import DeadLetter
from schemas.event import Event, utc_now
from schemas.trace import Trace, root_of, trace_of


@dataclass(frozen=True)
class _Message:
    """What names a message, and where it came from in its trace."""

    job_id: str
    tenant: str
    topic: str
    partition: int
    offset: int
    came: Trace

    def within(self, step: str, tracer: Tracer) -> Trace:
        """The place of what the flow of `step` makes of it."""
        if not tracer.on or not self.came.sampled:
            return self.came
        flow = step.partition(".")[0]
        name = f"{flow} {self.topic}/{self.partition}/{self.offset} {self.job_id}"
        return self.came.child(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16])

    def span(self, step: str, outcome: str, began_at: datetime, tracer: Tracer) -> Span:
        flow = step.partition(".")[0]
        attributes: dict[str, Attribute] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": self.topic,
            "messaging.destination.partition.id": str(self.partition),
            "messaging.kafka.offset": self.offset,
            "headrace.job_id": self.job_id,
            "headrace.tenant": self.tenant,
            "headrace.flow": flow,
            "headrace.step": step,
            "headrace.outcome": outcome,
        }
        parent_id = None if self.came == root_of(self.job_id) else self.came.span_id
        own, times = self.within(step, tracer), (began_at.timestamp(), utc_now().timestamp())
        return Span(f"{flow} process {self.topic}", own, parent_id, *times, "consumer", attributes)


def _message(envelope: Envelope[Any]) -> _Message:
    record, job = envelope.record, envelope.job
    came = trace_of(record.headers, job.job_id)
    return _Message(job.job_id, job.tenant, record.topic, record.partition, record.offset, came)


def _of_letter(letter: DeadLetter) -> _Message:
    headers = tuple((header.name, header.value) for header in letter.message_headers)
    came = trace_of(headers, letter.job_id)
    return _Message(letter.job_id, letter.tenant, letter.topic, letter.partition, letter.offset, came)


def trace_within(envelope: Envelope[Any], step: str, tracer: Tracer) -> Trace:
    """The place in the trace of what a flow makes of a message."""
    if not tracer.on:  # which is all that most processes ever come to
        return trace_of(envelope.record.headers, envelope.job.job_id)
    return _message(envelope).within(step, tracer)


def trace_of_letter(letter: DeadLetter, tracer: Tracer) -> Trace:
    """The same of a message that is a dead letter now."""
    return _of_letter(letter).within(letter.step, tracer)


def caused(event: Event, by: Envelope[Any], *, step: str, tracer: Tracer) -> OutgoingRecord:
    """The record of an event that a message has caused."""
    return outgoing(event, step=step, trace=trace_within(by, step, tracer))


def record_said(item: object) -> OutgoingRecord | None:
    """What a stateful step has said beside its outcome, if that is a record."""
    return item if isinstance(item, OutgoingRecord) else None


def settled(envelope: Envelope[Any], *, step: str, outcome: str, tracer: Tracer) -> None:
    """The message leaves the flow here: record what became of it."""
    if tracer.on and (message := _message(envelope)).came.sampled:
        tracer.record(message.span(step, outcome, envelope.received_at, tracer))


def settled_as_letter(letter: DeadLetter, *, tracer: Tracer) -> None:
    """The same of a message that has become a dead letter."""
    if tracer.on and (message := _of_letter(letter)).came.sampled:
        began_at = letter.received_at or letter.first_failed_at
        span = message.span(letter.step, "dead_lettered", began_at, tracer)
        tracer.record(replace(span, failed=letter.error_type))
