"""Versions of a document: the newest one stays, in whatever order they come."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from connectors.kafka.dead_letters import repeated
from operators.envelope import Job
from operators.extract import revision_of
from operators.outcome import bury
from schemas.documents import DocumentUploaded
from schemas.errors import Retryable
from schemas.jobs import JobState
from tests.flows.mill import Mill
from tests.memory_topics import record

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)  # before the records' own times


def version(minute: int, text: str | None, **fields: object) -> DocumentUploaded:
    """Of document `d`, uploaded so many minutes past noon; a delete has no text."""
    op = "upsert" if text is not None else "delete"
    uploaded_at = NOON + timedelta(minutes=minute)
    identity = {"job_id": f"{op}-{minute}", "document_id": "d", "op": op, "text": text, "uploaded_at": uploaded_at}
    return DocumentUploaded.model_validate(identity | fields)


def test_a_late_version_does_not_replace_a_newer_one_and_its_job_ends(mill: Mill) -> None:
    topics = mill.ingest(version(2, "Two."), version(1, "One."))
    assert mill.texts("d") == ["Two."]
    assert [(each["job_id"], each["superseded"], each["chunks"]) for each in topics.on("documents.indexed")] == [
        ("upsert-2", False, 1),
        ("upsert-1", True, 1),
    ]
    assert [status.state for status in topics.statuses()].count(JobState.COMPLETED) == 2


def test_a_late_version_does_not_bring_back_what_was_deleted(mill: Mill) -> None:
    mill.ingest(version(1, "One."), version(3, None))
    mill.ingest(version(2, "Two."))
    assert mill.texts("d") == []
    mill.ingest(version(4, "Four."))
    assert mill.texts("d") == ["Four."]


def test_a_late_delete_does_not_remove_what_was_uploaded_after_it(mill: Mill) -> None:
    topics = mill.ingest(version(2, "Two."), version(1, None))
    assert mill.texts("d") == ["Two."]
    assert topics.on("documents.indexed")[-1]["superseded"]


def test_the_same_content_uploaded_again_counts_as_the_newer_version(mill: Mill) -> None:
    mill.ingest(version(1, "One."))
    mill.ingest(version(3, "One."))
    mill.ingest(version(2, "Two."))
    assert mill.texts("d") == ["One."]


def test_a_producer_may_number_its_versions(mill: Mill) -> None:
    mill.ingest(version(1, "Eight.", revision=8), version(2, "Seven.", revision=7))
    assert mill.texts("d") == ["Eight."]


def test_a_redrive_does_not_make_an_old_upload_new(mill: Mill) -> None:
    """One without a time of its own, which was dead-lettered and is redriven days later."""
    bare = record(b'{"job_id": "a", "document_id": "d", "text": "Old."}')
    assert bare.value is not None
    old = replace(bare, timestamp=NOON)
    letter = bury(Job("a", "default", "d"), old, Retryable("the index was out of reach"), step="ingest.index")
    new = replace(bare, timestamp=NOON + timedelta(hours=1), offset=1, value=bare.value.replace(b"Old", b"New"))
    again = repeated(letter)
    assert again.value == old.value
    mill.run(new, replace(old, offset=2, timestamp=NOON + timedelta(days=2), headers=again.headers))
    assert mill.texts("d") == ["New."]


@pytest.mark.parametrize("header", [b"", b"\xff", b"2025-06-01", b"2025-06-01T12:00:00", b"9999-01-01T00:00:00+00:00"])
def test_a_header_that_is_no_earlier_time_changes_nothing(header: bytes) -> None:
    plain = replace(record(version(1, "One.")), timestamp=NOON + timedelta(minutes=1))
    odd = replace(plain, headers=(("headrace_first_produced", header),))
    assert revision_of(version(1, "One."), odd) == revision_of(version(1, "One."), plain)


def test_a_clock_that_runs_years_ahead_does_not_keep_later_versions_out(mill: Mill) -> None:
    mill.ingest(version(0, "Ahead.", uploaded_at=datetime(2099, 1, 1, tzinfo=UTC)))
    mill.ingest(version(0, "Later.", uploaded_at=datetime(2026, 1, 1, tzinfo=UTC)))
    assert mill.texts("d") == ["Later."]


def test_a_version_from_before_1970_is_the_oldest_of_all(mill: Mill) -> None:
    ancient = version(0, "Ancient.", uploaded_at=datetime(1902, 1, 1, tzinfo=UTC))
    assert mill.ingest(ancient).dead_letters() == []
    mill.ingest(version(1, "One."))
    mill.ingest(ancient)
    assert mill.texts("d") == ["One."]


def test_versions_of_one_tenant_say_nothing_about_those_of_another(mill: Mill) -> None:
    mill.ingest(version(2, "Two.", tenant="acme"), version(1, "One."))
    assert mill.texts("d") == ["One."]


def test_of_a_changed_document_only_the_changed_chunks_are_embedded_and_vanished_ones_are_gone(mill: Mill) -> None:
    parts = [" ".join(f"{word}{n}" for n in range(30)) + "." for word in ("alpha", "beta", "gamma", "delta", "omega")]
    mill.ingest(version(1, "\n\n".join(parts)), remember=True)
    assert len(mill.texts("d")) >= 5
    before = set(mill.texts("d"))
    mill.embedder.texts.clear()
    changed = [*parts[:2], "Something else altogether stands here now.", *parts[3:]]
    mill.ingest(version(2, "\n\n".join(changed)), remember=True)
    after = set(mill.texts("d"))
    assert set(mill.embedder.texts) == after - before
    assert not any("gamma" in text for text in after)
    assert len(after & before) >= 2


def test_a_document_whose_new_version_cannot_be_embedded_keeps_its_old_one(mill: Mill) -> None:
    mill.ingest(version(1, "One."))
    topics = mill.ingest(version(2, "Unembeddable."))
    assert mill.texts("d") == ["One."]
    (letter,) = topics.dead_letters()
    assert (letter.step, letter.error_class) == ("ingest.embed", "poison")
