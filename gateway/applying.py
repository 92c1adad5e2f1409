"""A batch of records becomes rows of the read model, within one transaction of whoever calls.

Every record is judged by itself: one that is no event of its topic is counted and left out. What comes again changes
nothing, except that a status is kept as often as its topic has it.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import ValidationError

from connectors.kafka.job_history import MOST
from connectors.kafka.record import Record
from gateway.evidence import JobRow, change_of, read_file
from gateway.moments import micros, moment
from gateway.told import Change, Lane, Told
from schemas.budgets import BudgetChanged
from schemas.cancellations import CancelRequested
from schemas.dead_letter import DeadLetter, DeadLetterRedriven
from schemas.deltas import TextDelta
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.event import Event, JobEvent
from schemas.explanation import Standing
from schemas.jobs import StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.topics import CATALOGUE, dead_letter_topics
from schemas.usage import UsageWindowed

E = TypeVar("E", bound=JobEvent)

BODY_SHA256_HEADER = "headrace_body_sha256"
"""Kafka header of what a gateway published: SHA-256 of the HTTP request's body, to know its repeats by."""

TOPICS: dict[str, type[Event]] = {
    topic.name: topic.event
    for topic in (*CATALOGUE, *dead_letter_topics())
    if topic.event
    in {
        StatusChanged,
        ResultCompleted,
        TextDelta,
        RequestSubmitted,
        DocumentUploaded,
        DocumentIndexed,
        DeadLetter,
        DeadLetterRedriven,
        ReviewRequested,
        ReviewDecided,
        CancelRequested,
        UsageWindowed,
        BudgetChanged,
    }
}
"""What is read: each topic's event."""

WITH_HEADERS = frozenset(topic for topic, event in TOPICS.items() if event in {RequestSubmitted, DocumentUploaded})
"""Of which the headers are read as well."""

MOST_JUDGED = 100
"""Of each, the newest statuses and dead letters, by which a batch judges a job: many times what one ever has, and below
1 ms for a script that sends one job_id again and again."""

_SAVE_JOB = """
INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET
    tenant = excluded.tenant, kind = excluded.kind, state = excluded.state, step = excluded.step,
    submitted_us = min(submitted_us, excluded.submitted_us), updated_us = excluded.updated_us,
    document_id = coalesce(excluded.document_id, document_id), cancel_requested = excluded.cancel_requested
"""
_CAP_STATUSES = """
DELETE FROM statuses WHERE job_id = :job AND offset <= (
    SELECT offset FROM statuses WHERE job_id = :job ORDER BY offset DESC LIMIT 1 OFFSET :most
)
"""


@dataclass(frozen=True)
class _Call:
    """The call of the model whose deltas are told, and the last one of them."""

    call_id: str
    number: int


class Applying:
    """One batch. Take its records in order, then ask for the changes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.skipped = 0
        self._db = db
        self._told: dict[str, list[Told]] = {}
        self._touched: dict[str, None] = {}  # jobs about which more is known than before, in order
        self._calls: dict[str, _Call] = {}
        self._readers: dict[type[Event], Callable[[Record], None]] = {
            StatusChanged: self._status,
            ResultCompleted: self._result,
            TextDelta: self._delta,
            RequestSubmitted: self._requested,
            DocumentUploaded: self._uploaded,
            DocumentIndexed: self._indexed,
            DeadLetter: self._buried,
            DeadLetterRedriven: self._redriven,
            ReviewRequested: self._review,
            ReviewDecided: self._decided,
            CancelRequested: self._cancel,
            UsageWindowed: self._window,
            BudgetChanged: self._budget,
        }

    def take(self, record: Record) -> None:
        """Write what the record says."""
        try:
            self._readers[TOPICS[record.topic]](record)
        except (ValidationError, OverflowError, _NoEvent):  # not ours, or a number that no column holds
            self.skipped += 1

    def touch(self, job_id: str) -> None:
        """The job is to be judged anew."""
        self._touched[job_id] = None

    def changes(self) -> Iterator[Change]:
        """Judge each job that was touched, once, and say what is new about it."""
        for job_id in self._touched:
            self._db.execute(_CAP_STATUSES, {"job": job_id, "most": MOST})
            file = read_file(self._db, job_id, most=MOST_JUDGED)
            if not file.evidence.known:
                self._db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
                continue
            self._save(file.row if file.is_whole else replace(file.row, tenant=self._tenant(file.row)))
            yield change_of(self._db, file, self._told.get(job_id, ()))
        for job_id in self._told:
            if job_id not in self._touched:
                yield self._told_more(job_id)

    def _tenant(self, row: JobRow) -> str:
        """Whose job it is, where what came first was not read this time: as it was found before."""
        found = self._db.execute("SELECT tenant FROM jobs WHERE job_id = ?", (row.job_id,)).fetchone()
        return row.tenant if found is None else str(found[0])

    def _save(self, row: JobRow) -> None:
        self._db.execute(
            _SAVE_JOB,
            (
                row.job_id,
                row.tenant,
                row.kind,
                row.state.value,
                row.step,
                micros(row.submitted_at),
                micros(row.updated_at),
                row.document_id,
                row.cancel_requested,
            ),
        )

    def _told_more(self, job_id: str) -> Change:
        """Deltas alone: they say nothing about where a job stands, but its end may have waited for the last of them."""
        found = self._db.execute("SELECT state, updated_us FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        state, updated_us = found or (Standing.RUNNING, 0)  # the first status may still be on its way
        told = self._told[job_id]
        if Standing(state).ended:
            return change_of(self._db, read_file(self._db, job_id, most=MOST_JUDGED), told)
        return Change(job_id, told, Standing(state), ended=False, settled=False, updated_at=moment(updated_us))

    def _status(self, record: Record) -> None:
        event = _keyed(StatusChanged, record)
        data = event.encode()
        self._insert("statuses", event.job_id, record.offset, _ms(record), data)
        self._tell("status", record, event, data)
        self.touch(event.job_id)

    def _result(self, record: Record) -> None:
        event = _keyed(ResultCompleted, record)
        former = self._db.execute("SELECT event FROM results WHERE job_id = ?", (event.job_id,)).fetchone()
        data = event.encode()
        if former is None or former[0] != data:  # a repeat is not told again
            self._insert("results", event.job_id, record.offset, _ms(record), data)
            self._tell("result", record, event, data)
            self.touch(event.job_id)

    def _delta(self, record: Record) -> None:
        event = _keyed(TextDelta, record)
        if self._is_void(event):
            return
        data = event.encode()
        columns = (event.job_id, record.offset, event.call_id, event.number, event.last, _ms(record), data)
        self._insert("deltas", None, *columns)
        self._calls[event.job_id] = _Call(event.call_id, event.number)
        self._tell("delta", record, event, data)

    def _is_void(self, event: TextDelta) -> bool:
        """A repeat, a delta of a call that another one has replaced, or of one whose beginning is not known."""
        current = self._calls.get(event.job_id) or self._stored_call(event.job_id)
        if current is not None and current.call_id == event.call_id:
            return event.number <= current.number
        begun = "SELECT 1 FROM deltas WHERE job_id = ? AND call_id = ?"
        return event.number > 0 or self._db.execute(begun, (event.job_id, event.call_id)).fetchone() is not None

    def _stored_call(self, job_id: str) -> _Call | None:
        last = "SELECT call_id, number FROM deltas WHERE job_id = ? ORDER BY offset DESC LIMIT 1"
        found = self._db.execute(last, (job_id,)).fetchone()
        return None if found is None else _Call(*found)

    def _requested(self, record: Record) -> None:
        event = RequestSubmitted.model_validate_json(record.value or b"")
        self._submitted(record, event, micros(event.submitted_at), None)

    def _uploaded(self, record: Record) -> None:
        event = DocumentUploaded.model_validate_json(record.value or b"")
        self._submitted(record, event, micros(event.uploaded_at), event.document_id)

    def _submitted(self, record: Record, event: JobEvent, submitted_us: int, document_id: str | None) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO submissions VALUES (?, ?, ?, ?, ?, ?, ?)",  # whoever sends an id first has it
            (
                event.job_id,
                record.topic,
                event.tenant,
                submitted_us,
                document_id,
                record.header(BODY_SHA256_HEADER),
                _ms(record),
            ),
        )
        self.touch(event.job_id)

    def _indexed(self, record: Record) -> None:
        event = DocumentIndexed.model_validate_json(record.value or b"")
        self._db.execute(
            "INSERT INTO indexed VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET "
            "tenant = excluded.tenant, document_id = excluded.document_id, indexed_us = excluded.indexed_us, "
            "chunks = excluded.chunks, deleted = excluded.deleted WHERE excluded.indexed_us >= indexed_us",
            (
                event.job_id,
                event.tenant,
                event.document_id,
                micros(event.indexed_at),
                event.chunks,
                event.op == "delete",
                _ms(record),
            ),
        )
        self.touch(event.job_id)

    def _buried(self, record: Record) -> None:
        letter = DeadLetter.model_validate_json(record.value or b"")
        self._db.execute(
            "INSERT OR IGNORE INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # of repeats, the first counts
            (
                letter.event_id,
                letter.job_id,
                letter.tenant,
                letter.step,
                letter.error_class,
                micros(letter.failed_at),
                record.topic,
                record.partition,
                record.offset,
                _ms(record),
                letter.model_copy(update={"message_value": None}).encode(),
            ),
        )
        self.touch(letter.job_id)

    def _redriven(self, record: Record) -> None:
        event = DeadLetterRedriven.model_validate_json(record.value or b"")
        columns = (event.dead_letter_id, event.job_id, micros(event.redriven_at), _ms(record))
        self._insert("redriven", *columns)
        self.touch(event.job_id)

    def _review(self, record: Record) -> None:
        event = ReviewRequested.model_validate_json(record.value or b"")
        expires_us = None if event.expires_at is None else micros(event.expires_at)
        names = (event.review_id, event.job_id, event.root_job_id, event.tenant)
        self._insert("reviews", *names, micros(event.requested_at), expires_us, _ms(record), event.encode())

    def _decided(self, record: Record) -> None:
        event = ReviewDecided.model_validate_json(record.value or b"")
        names = (event.review_id, event.job_id, event.root_job_id)
        self._db.execute(
            "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET decided_us = "
            "excluded.decided_us, decision = excluded.decision, event = excluded.event "
            "WHERE excluded.decided_us < decided_us",  # the first decision counts
            (*names, micros(event.decided_at), event.decision, _ms(record), event.encode()),
        )

    def _cancel(self, record: Record) -> None:
        event = CancelRequested.model_validate_json(record.value or b"")
        columns = (event.job_id, event.tenant, micros(event.requested_at), _ms(record), event.encode())
        self._db.execute(
            "INSERT INTO cancels VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requested_us = "
            "excluded.requested_us, event = excluded.event WHERE excluded.requested_us < requested_us",
            columns,
        )
        self.touch(event.job_id)

    def _window(self, record: Record) -> None:
        event = UsageWindowed.model_validate_json(record.value or b"")
        self._db.execute(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "version = excluded.version, event = excluded.event WHERE excluded.version >= version",
            (event.key, event.tenant, event.window_s, micros(event.window_start), event.version, event.encode()),
        )

    def _budget(self, record: Record) -> None:
        event = (
            BudgetChanged.model_validate_json(record.value) if record.value else BudgetChanged.of_tombstone(record.key)
        )
        if event is None:
            raise _NoEvent
        changed = event.written(record.timestamp)
        self._db.execute(
            "INSERT INTO budgets VALUES (?, ?, ?) ON CONFLICT (tenant) DO UPDATE SET "
            "changed_us = excluded.changed_us, event = excluded.event WHERE excluded.changed_us >= changed_us",
            (changed.tenant, micros(changed.changed_at), changed.encode()),
        )

    def _tell(self, lane: Lane, record: Record, event: JobEvent, data: bytes) -> None:
        self._told.setdefault(event.job_id, []).append(Told(lane, record.offset, data))

    def _insert(self, table: str, *columns: object) -> None:
        holes = ", ".join("?" * len(columns))
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({holes})", columns)  # noqa: S608  # our own names


class _NoEvent(Exception):
    """The record is none of its topic's events."""


def _keyed(event: type[E], record: Record) -> E:
    """The event, under its own key: in that order its job's events are told."""
    decoded = event.model_validate_json(record.value or b"")
    if record.key != decoded.key_bytes:
        raise _NoEvent
    return decoded


def _ms(record: Record) -> int:
    return micros(record.timestamp) // 1000
