"""Notifications of a bucket on topics in memory: what S3 and MinIO send, and what comes out."""

import json
from collections.abc import Callable

import pytest
from bytewax.testing import run_main

from connectors.kafka.port import Topics
from connectors.settings import load
from flows import notifications
from operators.notified import Buckets
from operators.runtime import Runtime
from schemas.documents import DocumentUploaded
from schemas.notifications import BucketScope
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
BUCKETS = {"docs": BucketScope(tenant="acme", collection="manuals")}


def happened(key: str, event: str = "ObjectCreated:Put", bucket: str = "docs") -> dict[str, object]:
    stored = {"key": key, "size": 10, "eTag": "e", "sequencer": "1"}
    return {
        "eventName": event,
        "eventTime": "2026-11-20T12:00:00Z",
        "s3": {"bucket": {"name": bucket}, "object": stored},
    }


def run(runtime_on: MakeRuntime, *values: object, buckets: Buckets | None = None) -> MemoryTopics:
    """One process: every value a message of its own."""
    topics = MemoryTopics(
        [
            record(json.dumps(value).encode(), topic="documents.notified", offset=offset, key=b"docs/key")
            for offset, value in enumerate(values)
        ]
    )
    run_main(notifications.build(runtime_on(topics), BUCKETS if buckets is None else buckets))
    return topics


def uris(topics: MemoryTopics) -> list[object]:
    return [payload["uri"] for payload in topics.on("documents.uploaded")]


def test_an_object_is_uploaded_and_deleted_as_the_document_that_its_uri_names(runtime_on: MakeRuntime) -> None:
    topics = run(
        runtime_on, {"Records": [happened("a+b.pdf")]}, {"Records": [happened("a+b.pdf", "ObjectRemoved:Delete")]}
    )
    created, removed = (DocumentUploaded.model_validate(each) for each in topics.on("documents.uploaded"))
    plain = DocumentUploaded.model_validate({"uri": "s3://docs/a b.pdf", "tenant": "acme", "collection": "manuals"})
    assert (created.op, removed.op) == ("upsert", "delete")
    assert created.document_id == removed.document_id == plain.document_id
    assert {item.key.decode() for item in topics.written} == {plain.document_id}
    assert topics.dead_letters() == []


def test_minio_says_the_same_with_a_name_and_key_of_its_own(runtime_on: MakeRuntime) -> None:
    entry = happened("plans%2Fa.pdf", "s3:ObjectCreated:Put")
    topics = run(runtime_on, {"EventName": "s3:ObjectCreated:Put", "Key": "docs/plans/a.pdf", "Records": [entry]})
    assert uris(topics) == ["s3://docs/plans/a.pdf"]


def test_a_test_event_and_what_changes_nothing_are_ignored(runtime_on: MakeRuntime) -> None:
    test_event = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2026-11-20T12:00:00Z", "Bucket": "docs"}
    topics = run(runtime_on, test_event, {"Records": [happened("a", "ObjectTagging:Put")]}, {"Records": []})
    assert topics.written == []


def test_bad_records_make_one_dead_letter_that_holds_them_alone(runtime_on: MakeRuntime) -> None:
    bad, alien = happened("caf%E9"), happened("b", bucket="other")
    topics = run(runtime_on, {"Key": "k", "Records": [happened("1"), bad, happened("2"), alien]})
    assert uris(topics) == ["s3://docs/1", "s3://docs/2"]
    (letter,) = topics.dead_letters()
    assert (letter.topic, letter.step, letter.tenant) == ("documents.notified", "notifications.uploads", "acme")
    assert letter.message.startswith("record 2 of 4: key 'caf%E9' is no UTF-8; record 4 of 4: bucket other")
    assert "HEADRACE_BUCKETS" in letter.message
    assert json.loads(letter.message_value or b"") == {"Key": "k", "Records": [bad, alien]}
    assert letter.message_key == b"docs/key"


def test_a_redrive_of_a_dead_letter_does_what_was_left_and_no_more(runtime_on: MakeRuntime) -> None:
    (letter,) = run(runtime_on, {"Records": [happened("1"), happened("2", bucket="new")]}).dead_letters()
    redriven = json.loads(letter.message_value or b"")
    buckets = BUCKETS | {"new": BucketScope()}
    assert uris(run(runtime_on, redriven, buckets=buckets)) == ["s3://new/2"]


def test_no_two_dead_letters_have_one_id(runtime_on: MakeRuntime) -> None:
    bad = {"Records": [happened("caf%E9"), happened(".."), happened("::")]}
    topics = run(runtime_on, bad, bad, {"no": "notification"}, "text", {"Records": None})
    letters = topics.dead_letters()
    assert len(letters) == len({letter.event_id for letter in letters}) == 5
    assert "Records is missing" in letters[2].message


def test_the_setting_says_whose_each_bucket_is(runtime_on: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BUCKETS", '{"docs": {"tenant": "t"}}')
    (upload,) = run(runtime_on, {"Records": [happened("a")]}, buckets=load().buckets).on("documents.uploaded")
    assert (upload["tenant"], upload["collection"]) == ("t", "documents")


@pytest.mark.parametrize("value", ["docs", '["docs"]', '{"docs": "acme"}', '{"docs": {"tenent": "t"}}'])
def test_a_setting_that_makes_no_sense_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BUCKETS", value)
    with pytest.raises(ValueError, match="HEADRACE_BUCKETS"):
        load()
