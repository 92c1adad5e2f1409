"""Bytes to events: the only way into a flow.

Guarantee: whatever a producer sends, the flow goes on. State: none. Dead letters: an empty value, malformed JSON, a
payload that does not fit the event's schema, a CloudEvents type other than the topic's.
"""

import json
import re
from typing import TypeVar

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream, operator
from pydantic import ValidationError

from connectors.kafka.record import Record
from connectors.slices import Slice
from operators.envelope import Envelope, Job, job_of
from operators.outcome import Outcome, bury, flow_step, split
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter, id_of_place
from schemas.errors import Poison, Refused
from schemas.event import IDENTIFIER_MAX_CHARS, URL_MAX_CHARS, JobEvent, utc_now

E = TypeVar("E", bound=JobEvent)

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,49}")


def parse(record: Record, event: type[E]) -> E:
    """The event in a record. Raises Poison; its message names fields and rules, never the values, which may be text."""
    try:
        tombstone = None if record.value else event.of_tombstone(record.key)
    except ValidationError as error:
        raise Poison(f"the key of an empty message on {record.topic} is no valid {event.__name__}") from error
    if tombstone is not None:
        return tombstone
    if not record.value:
        raise Poison(f"the message is empty; {record.topic} carries {event.__name__} as JSON")
    declared = record.header("ce_type")
    if declared is not None and declared != event.TYPE:
        raise Poison(f"header ce_type is {declared!r:.200}; {record.topic} carries {event.TYPE}")
    try:
        return event.model_validate_json(record.value)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(_name, fault['loc'])) or 'message'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")  # noqa: PLR2004  # a screenful
        raise Poison(f"not a valid {event.__name__}: {shown}") from error


def _name(part: int | str) -> str:
    """A step of the way to a fault. An unknown field is named too, unless its name is no name: that may be text."""
    return str(part) if isinstance(part, int) or _FIELD_NAME.fullmatch(part) else "?"


def salvage_job(record: Record) -> Job:
    """Whom to tell about a message that is no event: its own job_id if it can be read, else an id made of its place."""
    try:
        payload = json.loads(record.value or b"")
    except (ValueError, RecursionError):
        payload = None
    fields = payload if isinstance(payload, dict) else {}
    fallback = {
        "job_id": id_of_place(record.topic, record.partition, record.offset),
        "tenant": "default",
    }
    known = {name: fields.get(name, default) for name, default in fallback.items()}
    try:
        identity = JobEvent.model_validate(known)
    except ValidationError:
        identity = JobEvent.model_validate(fallback)
    return Job(
        identity.job_id,
        identity.tenant,
        _text(fields.get("document_id"), IDENTIFIER_MAX_CHARS),
        callback_url=_text(fields.get("callback_url"), URL_MAX_CHARS),
    )


def _text(field: object, max_chars: int) -> str | None:
    return field if isinstance(field, str) and len(field) <= max_chars else None


@operator
def decode(step_id: str, up: Stream[Record], event: type[E], mine: Slice | None = None) -> Outcome[E]:
    """Decode each record as `event`, keyed by the event's own key; malformed ones are dead letters.

    With a slice by tenant, what is another slice's is left to it.
    """
    step = flow_step(step_id)

    def run(record: Record) -> tuple[str, Envelope[E] | DeadLetter]:
        try:
            body = parse(record, event)
        except Poison as error:
            reason = error if event.ENDS_JOB_IF_UNREADABLE else Refused(str(error))
            letter = bury(salvage_job(record), record, reason, step=step, received_at=utc_now())
            return letter.job_id, letter
        return body.key, Envelope(job_of(body), body, record, utc_now())

    if mine is None or mine.by != "tenant":
        return split(op.map("run", up, run))
    owned = mine

    def run_if_mine(record: Record) -> tuple[str, Envelope[E] | DeadLetter] | None:
        key, item = run(record)
        if isinstance(item, DeadLetter):  # of whose tenant nothing certain is known
            is_mine = owned.owns_partition(record.partition)
        else:
            is_mine = owned.owns_tenant(item.job.tenant)
        return (key, item) if is_mine else None

    return split(op.filter_map("run", up, run_if_mine))


@operator
def consume(step_id: str, flow: Dataflow, event: type[E], runtime: Runtime, holding: bytes | None = None) -> Outcome[E]:
    """Read the topic of `event` and decode it.

    With `holding`, only what has these bytes in it: the rest is no concern of the flow's, and not worth decoding.
    """
    read = op.input("read", flow, runtime.topics.source(event))
    if holding is not None:
        read = op.filter("holding", read, lambda record: holding in (record.value or b""))
    return decode("decode", read, event, runtime.slice)
