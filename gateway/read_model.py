"""What the topics say, in one SQLite file, so that a question is answered in microseconds and while Kafka is out.

Guarantee: the position in each partition is stored with what led to it, so that a killed gateway goes on exactly where
it was. Nothing here is truth: a file that is missing, broken or of another version is made anew from the topics.
Written by one thread, the projection; read by any.
"""

import base64
import binascii
import heapq
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from connectors.kafka.dead_letters import FoundLetter, LetterFilter, LetterPlace, LetterSummary, summary
from connectors.kafka.record import Record
from connectors.kafka.reviews import Review
from gateway.applying import BODY_SHA256_HEADER, Applying
from gateway.evidence import JobRow, change_of, read_file, replaced_by
from gateway.moments import micros, moment
from gateway.read_model_file import ReadModelFile
from gateway.read_tables import RETENTION_MS
from gateway.told import Change, Lane, Position, Told
from schemas.budgets import BudgetChanged
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentUploaded
from schemas.event import utc_now
from schemas.explanation import Evidence, Standing, Submission
from schemas.requests import RequestSubmitted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.topics import dead_letter_topic, topic_of
from schemas.usage import UsageWindowed

__all__ = ["BODY_SHA256_HEADER", "JobPage", "JobRow", "LetterPage", "ReadModel"]

MOST_DELTAS = 2_000_000
"""About 1 GB, which the local disk of a small container has: an hour of 500 deltas a second. Of a job whose deltas are
gone, its result is told."""
MOST_NOTED = 10_000
"""Jobs that were published and not read back yet, about 10 MB: seconds of the most that a gateway accepts."""


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first, and where the next page begins, if there is one."""

    jobs: tuple[JobRow, ...]
    next: str | None


@dataclass(frozen=True)
class LetterPage:
    """The newest of the dead letters that match, newest first, and how many match."""

    letters: tuple[LetterSummary, ...]
    total: int


@dataclass(frozen=True)
class _Noted:
    """A job that this gateway has published, as it will be read back."""

    row: JobRow
    submitted: Submission
    body_sha256: str | None


class ReadModel:
    """The file. Raises Fatal if another process has it, or it cannot be made."""

    def __init__(self, path: Path) -> None:
        self._file = ReadModelFile(path)
        self._writing, self._reading = self._file.writing, self._file.reading
        self._noted: OrderedDict[str, _Noted] = OrderedDict()
        self.skipped = 0  # records that were no events of their topics, since the start
        self._positions = self._stored_positions()
        with self._reading() as db:
            self._sources: dict[str, str] = dict(db.execute("SELECT topic, id FROM sources").fetchall())

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    # For the projection.

    def apply(self, records: Sequence[Record]) -> Sequence[Change]:
        """Write a batch, all or nothing. Records that were applied before are left out."""
        if not records:
            return []
        reached = dict(self._positions)
        with self._writing() as db:
            applying = Applying(db)
            for record in records:
                place = (record.topic, record.partition)
                if record.offset >= reached.get(place, 0):
                    applying.take(record)
                    reached[place] = record.offset + 1
            changes = list(applying.changes())
            self._store_positions(db, {place: at for place, at in reached.items() if self._positions.get(place) != at})
        self._positions = reached
        self.skipped += applying.skipped
        for change in changes:
            self._noted.pop(change.job_id, None)
        return changes

    def positions(self) -> dict[tuple[str, int], int]:
        """The next offset to apply, by topic and partition."""
        return dict(self._positions)

    def belongs_to(self, topic: str, source_id: str) -> bool:
        """Whether the topic's rows come from the topic with this id; `""`: from the cluster with this id.

        Who is asked about first counts.
        """
        if topic not in self._sources:
            with self._writing() as db:
                db.execute("INSERT INTO sources VALUES (?, ?)", (topic, source_id))
            self._sources[topic] = source_id
        return self._sources[topic] == source_id

    def clear(self) -> None:
        """Forget everything, so that it is made anew from the topics."""
        self._file.remake()
        self._noted.clear()
        self._positions = {}
        self._sources = {}

    @property
    def is_damaged(self) -> bool:
        """Whether the file cannot be read any more, as after a fault of its disk."""
        return self._file.is_damaged

    def prune(self, now: datetime) -> None:
        """Drop rows that are older than their topic's retention, and deltas beyond MOST_DELTAS."""
        now_ms = micros(now) // 1000
        with self._writing() as db:
            applying = Applying(db)
            for table, retention_ms in RETENTION_MS.items():
                if table != "deltas":
                    old = db.execute(
                        f"DELETE FROM {table} WHERE written_ms < ? RETURNING job_id",  # noqa: S608  # our own names
                        (now_ms - retention_ms,),
                    )
                    for (job_id,) in old.fetchall():
                        applying.touch(job_id)
            kept = "SELECT id FROM deltas WHERE written_ms >= ? ORDER BY id LIMIT 1"
            first = db.execute(kept, (now_ms - RETENTION_MS["deltas"],)).fetchone()
            last = db.execute("SELECT max(id) FROM deltas").fetchone()[0] or 0
            db.execute("DELETE FROM deltas WHERE id < ?", (max(first[0] if first else last + 1, last - MOST_DELTAS),))
            for _ in applying.changes():
                pass

    # For whoever accepts jobs.

    def note(self, event: RequestSubmitted | DocumentUploaded, *, body_sha256: str | None = None) -> None:
        """The job has just been published: it is known from now on, though its record was not read back yet."""
        if isinstance(event, RequestSubmitted):
            kind, at, document_id = "request", event.submitted_at, None
        else:
            kind, at, document_id = "document", event.uploaded_at, event.document_id
        row = JobRow(event.job_id, event.tenant, kind, Standing.ACCEPTED, "", at, at, document_id)
        submitted = Submission(topic_of(type(event)).name, at, event.tenant)
        self._noted[event.job_id] = _Noted(row, submitted, body_sha256)
        if len(self._noted) > MOST_NOTED:
            with suppress(KeyError):
                self._noted.popitem(last=False)

    def body_sha256(self, job_id: str) -> str | None:
        """What BODY_SHA256_HEADER said when the job was submitted first; None: nothing, or the job is unknown."""
        noted = self._noted.get(job_id)  # first: a note goes once its rows are there
        with self._reading() as db:
            first = "SELECT body_sha256 FROM submissions WHERE job_id = ? ORDER BY written_ms, topic LIMIT 1"
            found = db.execute(first, (job_id,)).fetchone()
        if found is not None:
            return None if found[0] is None else str(found[0])
        return None if noted is None else noted.body_sha256

    # Jobs.

    def job(self, job_id: str) -> JobRow | None:
        """The job as lists show it."""
        noted = self._noted.get(job_id)  # first, as above
        with self._reading() as db:
            found = db.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if found is not None:
            return _job(found)
        return None if noted is None else noted.row

    def ended(self, job_id: str) -> bool:
        """Whether the job has ended, and its result is there if it has one."""
        with self._reading() as db:
            file = read_file(db, job_id)
        return file.evidence.known and file.ended

    def evidence(self, job_id: str) -> Evidence | None:
        """Everything that is known about the job; None: nothing."""
        noted = self._noted.get(job_id)  # first, as above
        with self._reading() as db:
            evidence = read_file(db, job_id).evidence
            if evidence.known:
                return replace(evidence, replaced_by=replaced_by(db, evidence))
        return None if noted is None else Evidence(job_id, submitted=noted.submitted)

    def jobs(
        self,
        *,
        tenant: str | None = None,
        state: Standing | None = None,
        kind: Literal["request", "document"] | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> JobPage:
        """Jobs by when they were submitted, newest first. Raises ValueError if `before` is no cursor of a page."""
        where = _Where()
        where.equal(tenant=tenant, state=state, kind=kind)
        if before is not None:
            where.holds("(submitted_us, job_id) < (?, ?)", *_cursor(before))
        found = self._rows("SELECT * FROM jobs", where, "ORDER BY submitted_us DESC, job_id DESC", limit + 1)
        rows = [_job(each) for each in found[:limit]]
        return JobPage(tuple(rows), _cursor_after(rows[-1]) if len(found) > limit and rows else None)

    def watched(self, job_id: str, after: Position) -> Change | None:
        """All that a watcher at that position has missed, and whether more is to come; None: the job is unknown."""
        noted = self._noted.get(job_id)  # first, as above
        with self._reading() as db:
            file = read_file(db, job_id)
            told = list(_told(db, job_id, after))
            if file.evidence.known:
                return change_of(db, file, told)
        if noted is None and not told:
            return None
        updated_at = utc_now() if noted is None else noted.row.updated_at
        return Change(job_id, told, Standing.ACCEPTED, ended=False, settled=False, updated_at=updated_at)

    # Reviews, dead letters, usage.

    def reviews(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        job_id: str | None = None,
        limit: int = 50,
    ) -> list[Review]:
        """Stops of jobs with their decisions, newest first. `state`: a standing, or `all`, as is None."""
        where = _Where()
        where.equal(**{"r.tenant": tenant, "r.job_id": job_id})
        if state not in {None, "all"}:
            where.holds(f"{_STANDING} = ?", micros(utc_now()), state)
        found = self._rows(_REVIEWS, where, "ORDER BY r.requested_us DESC, r.review_id DESC", limit)
        return [_review(each) for each in found]

    def review(self, review_id: str) -> Review | None:
        """One stop of a job."""
        where = _Where()
        where.equal(**{"r.review_id": review_id})
        found = self._rows(_REVIEWS, where)
        return _review(found[0]) if found else None

    def letters(self, wanted: LetterFilter, *, include_redriven: bool = False, limit: int = 50) -> LetterPage:
        """Dead letters that match, newest first."""
        where = _letters_where(wanted, include_redriven=include_redriven)
        found = self._rows(_LETTERS, where, "ORDER BY failed_us DESC, letter_id DESC", limit)
        ((total,),) = self._rows(f"SELECT count(*) {_LETTERS_FROM}", where)
        return LetterPage(tuple(_summary(each) for each in found), _int(total))

    def letter(self, letter_id: str) -> tuple[FoundLetter, LetterPlace] | None:
        """A dead letter without its message's value, and where all of it can be read."""
        where = _Where()
        where.equal(letter_id=letter_id)
        found = self._rows(_LETTERS, where)
        if not found:
            return None
        _, _, topic, partition, offset = found[0]
        return _letter(found[0]), LetterPlace(str(topic), _int(partition), _int(offset))

    def usage(self, *, tenant: str | None = None, since: datetime, window_s: int) -> list[UsageWindowed]:
        """Windows of that length that ended after `since`, oldest first."""
        where = _Where()
        where.equal(tenant=tenant, window_s=window_s)
        where.holds("start_us > ?", micros(since) - window_s * 1_000_000)
        found = self._rows("SELECT event FROM usage", where, "ORDER BY start_us, key")
        return [UsageWindowed.model_validate_json(_bytes(event)) for (event,) in found]

    def budget(self, tenant: str) -> BudgetChanged | None:
        """What was decided last; None: nothing, so the default holds."""
        found = self.budgets(tenant=tenant)
        return found[0] if found else None

    def budgets(self, *, tenant: str | None = None) -> list[BudgetChanged]:
        """Of each tenant what was decided last."""
        where = _Where()
        where.equal(tenant=tenant)
        found = self._rows("SELECT event FROM budgets", where, "ORDER BY tenant")
        return [BudgetChanged.model_validate_json(_bytes(event)) for (event,) in found]

    # The file.

    def _rows(self, select: str, where: "_Where", order: str = "", limit: int = -1) -> list[tuple[object, ...]]:
        with self._reading() as db:
            return db.execute(f"{select}{where} {order} LIMIT ?", (*where.values, limit)).fetchall()

    def _stored_positions(self) -> dict[tuple[str, int], int]:
        with self._reading() as db:
            found = db.execute("SELECT topic, partition, next_offset FROM positions")
            return {(topic, partition): at for topic, partition, at in found}

    @staticmethod
    def _store_positions(db: sqlite3.Connection, positions: dict[tuple[str, int], int]) -> None:
        rows = [(*place, at) for place, at in positions.items()]
        db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", rows)


class _Where:
    """Conditions of a query, and their values."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._conditions: list[str] = []

    def equal(self, **columns: object) -> None:
        """Each column has that value, where it is not None."""
        for column, value in columns.items():
            if value is not None:
                self.holds(f"{column} = ?", value)

    def holds(self, condition: str, *values: object) -> None:
        """The condition holds."""
        self._conditions.append(condition)
        self.values += values

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""


_REVIEWS = (
    "SELECT r.event, d.event, c.job_id FROM reviews r "
    "LEFT JOIN decisions d ON (d.review_id, d.job_id, d.root_job_id) = (r.review_id, r.job_id, r.root_job_id) "
    "LEFT JOIN cancels c ON (c.job_id, c.tenant) = (r.job_id, r.tenant)"
)
_STANDING = (
    "CASE WHEN d.decision = 'approve' THEN 'approved' WHEN d.decision = 'reject' THEN 'rejected' "
    "WHEN c.job_id IS NOT NULL THEN 'cancelled' WHEN expires_us <= ? THEN 'expired' ELSE 'open' END"
)
_LETTERS_FROM = "FROM letters l LEFT JOIN redriven USING (letter_id)"
_LETTERS = f"SELECT l.event, redriven_us, l.topic, l.partition, l.offset {_LETTERS_FROM}"
_TELLING = "SELECT written_ms, offset, event, json_extract(CAST(event AS TEXT), '$.tenant')"
_STATUSES_TOLD = f"{_TELLING} FROM statuses WHERE job_id = ? AND offset >= ? ORDER BY offset"
_DELTAS_TOLD = (
    f"{_TELLING} FROM deltas WHERE job_id = ?1 AND offset >= ?2 AND call_id = "  # noqa: S608  # our own names
    "(SELECT call_id FROM deltas WHERE job_id = ?1 ORDER BY offset DESC LIMIT 1) ORDER BY offset"
)
_RESULT_TOLD = f"{_TELLING} FROM results WHERE job_id = ? AND offset >= ?"


def _letters_where(wanted: LetterFilter, *, include_redriven: bool) -> _Where:
    """The same as LetterFilter.matches."""
    where = _Where()
    where.equal(**{"l.tenant": wanted.tenant, "l.job_id": wanted.job_id, "l.error_class": wanted.error_class})
    if wanted.topic is not None:
        where.holds("l.topic = ?", dead_letter_topic(wanted.topic))
    if wanted.step is not None:
        where.holds("substr(l.step || '.', 1, ?) = ?", len(wanted.step) + 1, f"{wanted.step}.")
    if wanted.since is not None:
        where.holds("failed_us >= ?", micros(wanted.since))
    if wanted.until is not None:
        where.holds("failed_us < ?", micros(wanted.until))
    if not include_redriven:
        where.holds("redriven_us IS NULL")
    return where


def _job(row: Sequence[object]) -> JobRow:
    job_id, tenant, kind, state, step, submitted_us, updated_us, document_id, cancel_requested = row
    return JobRow(
        str(job_id),
        str(tenant),
        str(kind),
        Standing(str(state)),
        str(step),
        moment(_int(submitted_us)),
        moment(_int(updated_us)),
        None if document_id is None else str(document_id),
        bool(cancel_requested),
    )


def _told(db: sqlite3.Connection, job_id: str, after: Position) -> Iterator[Told]:
    """Each topic in its order, one after the other as they were written; of the calls of the model, the last one's."""
    lanes: list[tuple[Lane, str, int]] = [
        ("status", _STATUSES_TOLD, after.status),
        ("delta", _DELTAS_TOLD, after.delta),
        ("result", _RESULT_TOLD, after.result),
    ]
    found = [
        [
            (written_ms, Told(lane, offset, event, tenant))
            for written_ms, offset, event, tenant in db.execute(query, (job_id, reached))
        ]
        for lane, query, reached in lanes
    ]
    yield from (told for _, told in heapq.merge(*found, key=lambda each: each[0]))


def _review(row: Sequence[object]) -> Review:
    requested, decided, cancelled = row
    decision = None if decided is None else ReviewDecided.model_validate_json(_bytes(decided))
    return Review(ReviewRequested.model_validate_json(_bytes(requested)), decision, cancelled is not None)


def _letter(row: Sequence[object]) -> FoundLetter:
    redriven_at = None if row[1] is None else moment(_int(row[1]))
    return FoundLetter(DeadLetter.model_validate_json(_bytes(row[0])), redriven_at)


def _summary(row: Sequence[object]) -> LetterSummary:
    found = _letter(row)
    return summary(found.letter, found.redriven_at)


def _bytes(column: object) -> bytes:
    if not isinstance(column, bytes):
        raise TypeError(f"{type(column).__name__} in a column of events")
    return column


def _int(column: object) -> int:
    if not isinstance(column, int):
        raise TypeError(f"{type(column).__name__} in a column of numbers")
    return column


def _cursor_after(row: JobRow) -> str:
    return base64.urlsafe_b64encode(json.dumps([micros(row.submitted_at), row.job_id]).encode()).decode()


def _cursor(text: str) -> tuple[int, str]:
    try:
        submitted_us, job_id = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
        if not (isinstance(submitted_us, int) and isinstance(job_id, str) and abs(submitted_us) < 2**63):
            raise ValueError  # noqa: TRY301  # as any other that is no cursor
    except (ValueError, TypeError, binascii.Error) as error:
        raise ValueError(f"{text[:80]!r} is no cursor of a page; take the `next` of one, or leave it out") from error
    return submitted_us, job_id
