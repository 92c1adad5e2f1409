"""What the read model's rows say about one job, for whoever has a connection: the projection and every query."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from connectors.kafka.job_history import MOST
from gateway.moments import micros, moment
from gateway.told import Change, Told
from schemas.cancellations import CancelRequested
from schemas.dead_letter import DeadLetter
from schemas.explanation import BuriedMessage, Evidence, IndexedDocument, Standing, Submission, outline
from schemas.jobs import StatusChanged
from schemas.results import ResultCompleted

_ROWS = """
SELECT 'status', event, NULL, NULL, NULL, NULL FROM (
          SELECT event FROM statuses WHERE job_id = :job ORDER BY offset DESC LIMIT :most)
UNION ALL SELECT 'result', event, NULL, NULL, NULL, NULL FROM results WHERE job_id = :job
UNION ALL SELECT 'letter', event, redriven_us, NULL, NULL, NULL FROM (
          SELECT event, letter_id FROM letters WHERE job_id = :job ORDER BY rowid DESC LIMIT :most)
          LEFT JOIN redriven USING (letter_id)
UNION ALL SELECT 'indexed', tenant, indexed_us, document_id, chunks, deleted FROM indexed WHERE job_id = :job
UNION ALL SELECT 'submitted', tenant, submitted_us, document_id, topic, NULL FROM (
          SELECT * FROM submissions WHERE job_id = :job ORDER BY written_ms, topic LIMIT 1)
UNION ALL SELECT 'cancel', event, NULL, NULL, NULL, NULL FROM cancels WHERE job_id = :job
"""
_REPLACED_BY = """
SELECT job_id FROM indexed WHERE document_id = ? AND job_id != ? AND indexed_us > ? ORDER BY indexed_us DESC LIMIT 1
"""


@dataclass(frozen=True)
class JobRow:
    """A job as lists show it."""

    job_id: str
    tenant: str
    kind: str  # `request` or `document`
    state: Standing
    step: str  # that was heard of last; empty before the first
    submitted_at: datetime  # or first heard of, if its submission is not known
    updated_at: datetime
    document_id: str | None = None
    cancel_requested: bool = False


@dataclass(frozen=True)
class File:
    """All that the rows hold about a job."""

    evidence: Evidence
    document_id: str | None
    is_whole: bool  # else only the newest statuses and dead letters were read

    @cached_property
    def row(self) -> JobRow:
        """The job in a list; the evidence must be known."""
        said = outline(self.evidence)
        return JobRow(
            self.evidence.job_id,
            said.tenant,
            said.kind,
            said.standing,
            said.step,
            said.first_at,
            said.last_at,
            self.document_id,
            self.evidence.cancel_requested is not None,
        )

    @property
    def ended(self) -> bool:
        """The job has ended, and its result is there if it has one."""
        answered = self.row.state is Standing.COMPLETED and self.row.kind == "request"
        return self.row.state.ended and (not answered or self.evidence.result is not None)


def read_file(db: sqlite3.Connection, job_id: str, *, most: int = MOST) -> File:
    """The job's rows, `most` statuses and dead letters of them; `evidence.known` is false if there are none.

    Without `replaced_by`, which costs more.
    """
    statuses: list[StatusChanged] = []
    buried: list[BuriedMessage] = []
    cancels: list[CancelRequested] = []
    documents: list[str] = []
    result, indexed, submitted = None, None, None
    for what, text, us, document_id, more, deleted in db.execute(_ROWS, {"job": job_id, "most": most}):
        match what:
            case "status":
                statuses.append(StatusChanged.model_validate_json(text))
            case "result":
                result = ResultCompleted.model_validate_json(text)
            case "letter":
                redriven_at = None if us is None else moment(us)
                buried.append(BuriedMessage(DeadLetter.model_validate_json(text), redriven_at))
            case "indexed":
                indexed = IndexedDocument(moment(us), more, bool(deleted), text)
                documents.append(document_id)
            case "submitted":
                submitted = Submission(more, moment(us), text)
                documents += [] if document_id is None else [document_id]
            case _:
                cancels.append(CancelRequested.model_validate_json(text))
    documents += [status.document_id for status in statuses if status.document_id is not None]
    documents += [each.letter.document_id for each in buried if each.letter.document_id is not None]
    evidence = Evidence(job_id, tuple(reversed(statuses)), tuple(reversed(buried)), result, indexed, submitted)
    evidence = replace(evidence, cancel=evidence.first_of(cancels)) if cancels else evidence
    return File(evidence, documents[0] if documents else None, max(len(statuses), len(buried)) < most)


def replaced_by(db: sqlite3.Connection, evidence: Evidence) -> str | None:
    """The job that has indexed the document anew since this one failed for the last time."""
    letters = [each.letter for each in evidence.buried]
    newest = max(letters, key=lambda letter: (letter.failed_at, letter.event_id), default=None)
    if newest is None or newest.document_id is None:
        return None
    found = db.execute(_REPLACED_BY, (newest.document_id, evidence.job_id, micros(newest.failed_at))).fetchone()
    return None if found is None else str(found[0])


def change_of(db: sqlite3.Connection, file: File, told: Sequence[Told]) -> Change:
    """What is new, and how the job stands with it."""
    row = file.row
    settled = file.ended and _is_settled(db, file.evidence, row.state)
    return Change(row.job_id, told, row.state, ended=file.ended, settled=settled, updated_at=row.updated_at)


def _is_settled(db: sqlite3.Connection, evidence: Evidence, state: Standing) -> bool:
    """Whether nothing more is expected to be told: the status that says so, and the end of the text, are there.

    Each comes from a topic of its own, so that an end may be known some milliseconds before all that led to it.
    """
    if all(status.state.value != state.value for status in evidence.statuses):
        return False
    if state is not Standing.COMPLETED or evidence.result is None or evidence.result.call_id is None:
        return True
    last = "SELECT 1 FROM deltas WHERE job_id = ? AND call_id = ? AND last"
    return db.execute(last, (evidence.job_id, evidence.result.call_id)).fetchone() is not None
