"""Everything that the topics hold about one job, read as any other service could.

Guarantee: what was durable when the reading began is in the evidence. A status is read before the letters, results and
markers that may have followed it, so that no end is taken for lost. Memory: the records of this job, without the values
of its dead letters, and at most MOST of a kind.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from connectors.kafka.dead_letters import needle_of, redriven_by
from connectors.kafka.reader import TopicReader
from connectors.kafka.record import Record
from schemas.cancellations import CancelRequested
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.event import JobEvent
from schemas.explanation import BuriedMessage, Evidence, IndexedDocument, Submission
from schemas.jobs import StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted
from schemas.topics import dead_letter_topics, topic_of

MOST = 1000
"""Statuses, or dead letters, that are kept of one job: a script that sends one job_id again and again makes more."""

E = TypeVar("E", bound=JobEvent)


def read_history(bootstrap: str, config: Mapping[str, str] | None, job_id: str) -> Evidence:
    """The evidence of one job; `known` is false if there is none. Raises Retryable if no broker answers within 10 s."""
    with TopicReader(bootstrap, config) as reader:
        return evidence_of(reader, job_id)


def evidence_of(reader: TopicReader, job_id: str) -> Evidence:
    """The same, by a reader that was entered."""
    return _History(reader, job_id).evidence()


class _History:
    def __init__(self, reader: TopicReader, job_id: str) -> None:
        self._reader = reader
        self._job_id = job_id
        self._needle = needle_of(job_id)

    def evidence(self) -> Evidence:
        key = self._job_id.encode()
        statuses = deque(self._events(StatusChanged, key=key), MOST)
        letters = self._letters()
        results = deque(self._events(ResultCompleted, key=key), 1)
        indexed, replaced_by = self._indexed(list(letters.values()))
        redriven = {
            marker.dead_letter_id: marker.redriven_at
            for marker in redriven_by(self._reader)
            if marker.dead_letter_id in letters
        }
        known = statuses or letters or results or indexed
        evidence = Evidence(
            self._job_id,
            tuple(statuses),
            tuple(BuriedMessage(letter, redriven.get(its_id)) for its_id, letter in letters.items()),
            results[0] if results else None,
            indexed,
            None if known else self._submission(),
            replaced_by,
        )
        return replace(evidence, cancel=evidence.first_of(self._events(CancelRequested)))

    def _records(self, topic: str) -> Iterator[Record]:
        if self._reader.exists(topic):
            yield from self._reader.records([topic])

    def _events(self, event: type[E], *, key: bytes | None = None) -> Iterator[E]:
        """The job's events on the topic of `event`. `key`: theirs, where all producers are ours."""
        for record in self._records(topic_of(event).name):
            if key in {None, record.key}:
                decoded = _decoded(record, event)
                if decoded is not None and decoded.job_id == self._job_id:
                    yield decoded

    def _letters(self) -> dict[str, DeadLetter]:
        """By id. Of a letter that a crash repeated, the first: its redrive came after that."""
        letters: dict[str, DeadLetter] = {}
        for topic in dead_letter_topics():
            for record in self._records(topic.name):
                letter = _decoded(record, DeadLetter) if self._needle in (record.value or b"") else None
                if letter is not None and letter.job_id == self._job_id and len(letters) < MOST:
                    letters.setdefault(letter.event_id, letter.model_copy(update={"message_value": None}))
        return letters

    def _indexed(self, letters: Sequence[DeadLetter]) -> tuple[IndexedDocument | None, str | None]:
        """The job's document in the index, and the job that has indexed it anew since the last of `letters`."""
        mine: DocumentIndexed | None = None
        newest: DocumentIndexed | None = None
        failed = max(letters, key=lambda letter: (letter.failed_at, letter.event_id), default=None)
        document_id = None if failed is None else failed.document_id
        for record in self._records(topic_of(DocumentIndexed).name):
            same = document_id is not None and record.key == document_id.encode()
            event = _decoded(record, DocumentIndexed) if same or self._needle in (record.value or b"") else None
            if event is None:
                continue
            if event.job_id == self._job_id:
                mine = event if mine is None or event.indexed_at >= mine.indexed_at else mine
            elif same and failed is not None and event.indexed_at > failed.failed_at:
                newest = event if newest is None or event.indexed_at >= newest.indexed_at else newest
        indexed = (
            None if mine is None else IndexedDocument(mine.indexed_at, mine.chunks, mine.op == "delete", mine.tenant)
        )
        return indexed, None if newest is None else newest.job_id

    def _submission(self) -> Submission | None:
        """The first of the job's own messages. Its job_id may be derived from the content: all have to be decoded."""
        found: list[tuple[datetime, str, Submission]] = []
        events: tuple[type[DocumentUploaded | RequestSubmitted], ...] = (DocumentUploaded, RequestSubmitted)
        for event in events:
            topic = topic_of(event).name
            for record in self._records(topic):
                decoded = _decoded(record, event)
                if decoded is not None and decoded.job_id == self._job_id:
                    at = decoded.uploaded_at if isinstance(decoded, DocumentUploaded) else decoded.submitted_at
                    found.append((record.timestamp, topic, Submission(topic, at, decoded.tenant)))
        return min(found, key=lambda each: each[:2])[2] if found else None


def _decoded(record: Record, event: type[E]) -> E | None:
    try:
        return event.model_validate_json(record.value or b"")
    except ValidationError:
        return None  # a tombstone, or nothing of ours
