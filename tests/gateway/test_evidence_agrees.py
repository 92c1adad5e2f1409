"""The read model and `headrace jobs show` come to the same answer from the same topics."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka.job_history import evidence_of
from connectors.kafka.reader import TopicReader
from connectors.kafka.record import Record
from gateway.read_model import ReadModel
from schemas.cancellations import CancelRequested
from schemas.dead_letter import REDRIVE_HEADER, DeadLetter, DeadLetterRedriven, Header
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.event import JobEvent
from schemas.explanation import Evidence, explain, outline
from schemas.jobs import JobState, StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted, Timings, TokenCount
from tests.gateway.records import records

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW = START + timedelta(hours=1)
JOBS = st.sampled_from(["a", "b"])
TIMES = st.integers(0, 30).map(lambda seconds: START + timedelta(seconds=seconds))
STEPS = st.sampled_from(["answer.retrieve", "answer.infer", "ingest.embed"])
DOCUMENTS = st.sampled_from([None, "d"])
OFFSETS = st.integers(0, 3)


class InMemory(TopicReader):
    """Reads records that are on no broker."""

    def __init__(self, written: Sequence[Record]) -> None:
        super().__init__("nowhere")
        self._written = written

    def exists(self, topic: str) -> bool:
        return any(record.topic == topic for record in self._written)

    def records(self, topics: Sequence[str], starts: Mapping[tuple[str, int], int] | None = None) -> Iterator[Record]:
        del starts
        return (record for record in self._written if record.topic in topics)


STATUSES = st.builds(
    StatusChanged,
    job_id=JOBS,
    state=st.sampled_from(JobState),
    step=STEPS,
    attempt=st.integers(1, 3),
    document_id=DOCUMENTS,
    occurred_at=TIMES,
    needs_review=st.booleans(),
)
RESULTS = st.builds(
    ResultCompleted,
    job_id=JOBS,
    kind=st.just("answer"),
    text=st.sampled_from(["Forty.", "Forty-one."]),
    finish_reason=st.just("stop"),
    usage=st.just(TokenCount(prompt_tokens=1, completion_tokens=1)),
    model=st.just("m"),
    timings=st.just(Timings(queued_s=0, retrieve_s=0, infer_s=1)),
    completed_at=TIMES,
)
HEADERS = st.sampled_from([(), (Header(name=REDRIVE_HEADER, value=b"2"),)])
LETTERS = st.builds(
    DeadLetter,
    job_id=st.just("a"),  # until its offset is known: the message of a letter is of one job
    topic=st.sampled_from(["requests.submitted", "documents.uploaded"]),
    partition=st.just(0),
    offset=OFFSETS,
    message_value=st.just(b"the prompt"),
    message_headers=HEADERS,
    step=STEPS,
    error_class=st.sampled_from(["retryable", "poison"]),
    error_type=st.just("Retryable"),
    message=st.just("the model answered 500"),
    attempts=st.integers(1, 2),
    retryable=st.booleans(),
    ends_job=st.booleans(),
    document_id=DOCUMENTS,
    first_failed_at=st.just(START),
    failed_at=TIMES,
)
INDEXED = st.builds(
    DocumentIndexed,
    job_id=JOBS,
    document_id=st.just("d"),
    op=st.sampled_from(["upsert", "delete"]),
    chunks=st.integers(0, 3),
    model=st.just("m"),
    indexed_at=TIMES,
)
SUBMITTED = st.builds(RequestSubmitted, job_id=JOBS, prompt=st.just("How many?"), submitted_at=TIMES)
UPLOADED = st.builds(DocumentUploaded, job_id=JOBS, document_id=st.just("d"), text=st.just("text"), uploaded_at=TIMES)
CANCELS = st.builds(CancelRequested, job_id=JOBS, tenant=st.sampled_from(["default", "other"]), requested_at=TIMES)


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Topics with events of two jobs; some dead letters were redriven."""
    drawn = draw(st.lists(LETTERS, max_size=4))
    letters = [letter.model_copy(update={"job_id": "ab"[letter.offset % 2]}) for letter in drawn]
    redriven = [
        DeadLetterRedriven(
            job_id=letter.job_id,
            dead_letter_id=letter.event_id,
            topic=letter.topic,
            redrives=1,
            redriven_at=draw(TIMES),
        )
        for letter in letters
        if draw(st.booleans())
    ]
    events: list[JobEvent] = [*letters, *redriven]
    for kind, most in ((STATUSES, 6), (RESULTS, 2), (INDEXED, 3), (SUBMITTED, 2), (UPLOADED, 2), (CANCELS, 2)):
        events += draw(st.lists(kind, max_size=most))
    return records(*events)


def comparable(evidence: Evidence) -> Evidence:
    """The command looks for a submission only where nothing else is known, since it has to decode them all."""
    known = evidence.statuses or evidence.buried or evidence.result or evidence.indexed
    letters = sorted(evidence.buried, key=lambda each: each.letter.event_id)
    return replace(evidence, buried=tuple(letters), submitted=None if known else evidence.submitted)


@settings(max_examples=150)
@given(histories(), st.randoms(use_true_random=False), st.integers(1, 8))
def test_the_gateway_and_the_command_know_the_same_of_a_job(written: list[Record], random: Random, size: int) -> None:
    by_topic: dict[str, list[Record]] = {}
    for record in written:
        by_topic.setdefault(record.topic, []).append(record)
    mixed: list[Record] = []
    while any(by_topic.values()):
        topic = random.choice([name for name, left in by_topic.items() if left])
        mixed.append(by_topic[topic].pop(0))
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(ReadModel(Path(directory) / "read_model.sqlite")) as read_model,
    ):
        for start in range(0, len(mixed), size):
            read_model.apply(mixed[start : start + size])
        for job_id in ("a", "b"):
            expected = evidence_of(InMemory(written), job_id)
            evidence = read_model.evidence(job_id)
            row = read_model.job(job_id)
            if not expected.known:
                assert evidence is None
                assert row is None
                continue
            assert evidence is not None
            assert row is not None
            assert comparable(evidence) == comparable(expected)
            shown = explain(comparable(expected), now=NOW)
            assert explain(comparable(evidence), now=NOW) == shown
            assert row.state == shown.standing
            said = outline(evidence)
            assert (row.state, row.kind, row.tenant) == (said.standing, said.kind, said.tenant)
            assert (row.updated_at, row.cancel_requested) == (said.last_at, expected.cancel_requested is not None)
