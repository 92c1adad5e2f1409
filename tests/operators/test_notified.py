"""What an object store says becomes uploads of the same documents that anybody else would upload."""

import json
from datetime import datetime
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.notified import decode_key, sift, upload_of
from schemas.documents import DocumentUploaded
from schemas.errors import Poison
from schemas.notifications import BucketNotified, BucketScope, ObjectNotified

BUCKETS = {"docs": BucketScope(tenant="acme", collection="manuals")}
TIME = "2026-11-20T12:00:00.123Z"


def entry(key: str = "a.pdf", event: str = "ObjectCreated:Put", *, bucket: str = "docs", **stored: object) -> Any:
    """One record, as S3 sends it."""
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-central-1",
        "eventTime": TIME,
        "eventName": event,
        "userIdentity": {"principalId": "AWS:EXAMPLE"},
        "requestParameters": {"sourceIPAddress": "192.0.2.1"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "all",
            "bucket": {"name": bucket, "ownerIdentity": {"principalId": "EXAMPLE"}, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": key, "size": 1024, "eTag": "d41d8cd9", "sequencer": "0A1B", **stored},
        },
    }


def upload(*args: str, **fields: str) -> DocumentUploaded | None:
    return upload_of(ObjectNotified.model_validate(entry(*args, **fields)), BUCKETS)


def done(*args: str, **fields: str) -> DocumentUploaded:
    found = upload(*args, **fields)
    assert found is not None
    return found


def test_created_object_is_the_document_that_a_plain_upload_of_its_uri_would_be() -> None:
    made = done("plans/a.pdf")
    plain = DocumentUploaded.model_validate({"uri": "s3://docs/plans/a.pdf", "tenant": "acme", "collection": "manuals"})
    assert (made.op, made.uri, made.document_id) == ("upsert", "s3://docs/plans/a.pdf", plain.document_id)
    assert made.uploaded_at == datetime.fromisoformat(TIME)


@pytest.mark.parametrize(
    "event",
    ["ObjectCreated:Put", "ObjectCreated:Post", "ObjectCreated:CompleteMultipartUpload", "s3:ObjectCreated:Copy"],
)
def test_every_way_of_creating_is_an_upload(event: str) -> None:
    assert done(event=event).op == "upsert"


@pytest.mark.parametrize(
    "event",
    [
        *("ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated", "s3:ObjectRemoved:Delete"),
        *("LifecycleExpiration:Delete", "s3:LifecycleExpiration:DeleteMarkerCreated"),
    ],
)
def test_every_way_of_removing_deletes_the_document_that_creating_made(event: str) -> None:
    removed = done(event=event)
    assert removed.op == "delete"
    assert removed.document_id == done().document_id


@pytest.mark.parametrize(
    "event",
    [
        *(
            "ObjectTagging:Put",
            "ObjectAcl:Put",
            "ObjectRestore:Completed",
            "s3:ObjectAccessed:Get",
            "Replication:Failed",
        ),
        *("s3:ObjectRemoved:NoOP", "LifecycleTransition", "ReducedRedundancyLostObject", "", "x"),
    ],
)
def test_what_changes_no_content_is_ignored_wherever_it_happens(event: str) -> None:
    assert upload(event=event) is None
    assert upload(event=event, bucket="unlisted") is None


@given(st.text(min_size=1))
def test_a_key_survives_its_encoding_or_is_refused(key: str) -> None:
    for encoded in (quote_plus(key), quote(key)):
        try:
            assert decode_key(encoded) == key
        except Poison:
            assert "::" in key or ".." in key.split("/") or "?versionId=" in key


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_a_removal_hits_the_document_of_its_key_and_no_other(one: str, other: str) -> None:
    ids = []
    for key, event in ((one, "ObjectCreated:Put"), (other, "ObjectRemoved:Delete")):
        try:
            found = upload(quote_plus(key), event)
        except Poison:
            return
        if found is None:
            return
        ids.append(found.document_id)
    assert (ids[0] == ids[1]) == (one == other)


@pytest.mark.parametrize(
    ("encoded", "key"),
    [
        ("a+b%2Bc.pdf", "a b+c.pdf"),
        ("stra%C3%9Fe%2Fa.pdf", "straße/a.pdf"),
        ("what%3F.pdf", "what?.pdf"),
        ("no%23.pdf", "no#.pdf"),
        ("50%25.pdf", "50%.pdf"),
        ("%2Fa", "/a"),
        ("a..b/c...pdf", "a..b/c...pdf"),
        ("straße.pdf", "straße.pdf"),
    ],
)
def test_a_key_is_decoded_once(encoded: str, key: str) -> None:
    assert done(encoded).uri == f"s3://docs/{key}"


@pytest.mark.parametrize(
    "key",
    [
        *("a/../b", "..", "../a", "%2E%2E/a", "a%3A%3Ab", "a%3FversionId=1", "caf%E9", "%00" * 5000),
        "folder/",
    ],
)
def test_a_key_that_no_uri_can_carry_is_refused_by_name(key: str) -> None:
    with pytest.raises(Poison, match="key"):
        upload(key)


def test_a_folder_is_no_document() -> None:
    for record in (entry("folder/", size=0), entry("folder/", "ObjectRemoved:Delete")):
        assert upload_of(ObjectNotified.model_validate(record), BUCKETS) is None


def test_without_a_setting_every_bucket_is_the_default_tenants() -> None:
    found = upload_of(ObjectNotified.model_validate(entry(bucket="any.bucket")), {})
    assert found is not None
    assert (found.tenant, found.collection) == ("default", "documents")
    assert found.document_id == DocumentUploaded.model_validate({"uri": "s3://any.bucket/a.pdf"}).document_id


def test_an_unlisted_bucket_is_refused_and_the_setting_named() -> None:
    with pytest.raises(Poison, match=r"bucket other .*HEADRACE_BUCKETS"):
        upload(bucket="other")


def test_jobs_are_equal_for_the_same_event_and_differ_for_another() -> None:
    jobs = [
        done().job_id,
        done(sequencer="0A1C").job_id,
        done(eTag="other").job_id,
        done(event="ObjectCreated:Copy").job_id,
        done(event="ObjectRemoved:Delete").job_id,
        done("b.pdf").job_id,
    ]
    assert len(set(jobs)) == len(jobs)
    assert done().job_id == done(event="s3:ObjectCreated:Put").job_id == jobs[0]


def test_without_a_sequencer_the_time_tells_events_apart() -> None:
    first, again = (entry() for _ in range(2))
    later = entry() | {"eventTime": "2026-11-20T12:00:01Z"}
    jobs = []
    for record in (first, again, later):
        del record["s3"]["object"]["sequencer"]
        found = upload_of(ObjectNotified.model_validate(record), BUCKETS)
        assert found is not None
        jobs.append(found.job_id)
    assert jobs[0] == jobs[1] != jobs[2]


def test_bad_records_do_not_keep_the_good_ones_back() -> None:
    bad = entry("caf%E9")
    malformed = entry()
    del malformed["s3"]["object"]["key"]
    records = [entry("1"), bad, entry("2"), malformed, "nonsense", entry("3", bucket="no/bucket")]
    sifted = sift(BucketNotified.model_validate({"Records": records}), BUCKETS)
    assert [each.uri for each in sifted.uploads] == ["s3://docs/1", "s3://docs/2"]
    assert [(fault.index, fault.tenant) for fault in sifted.faults] == [
        *((1, "acme"), (3, "default"), (4, "default"), (5, "default")),
    ]
    assert "s3.object.key: Field required" in sifted.faults[1].reason
    assert "s3.bucket.name" in sifted.faults[3].reason


def test_a_notification_delivered_twice_is_the_same_job() -> None:
    value = json.dumps({"Records": [entry()]})
    assert BucketNotified.model_validate_json(value) == BucketNotified.model_validate_json(value)
    other = BucketNotified.model_validate({"Records": [entry("b")]})
    assert other.job_id != BucketNotified.model_validate_json(value).job_id


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["s3", "object", "key"]), inner),
    max_leaves=5,
)


@given(st.data())
def test_whatever_a_record_holds_it_is_done_ignored_or_named(data: st.DataObject) -> None:
    record = entry()
    place = data.draw(st.sampled_from([record, record["s3"], record["s3"]["bucket"], record["s3"]["object"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON_VALUES)
    sifted = sift(BucketNotified.model_validate({"Records": [record, entry("good")]}), BUCKETS)
    assert sifted.uploads[-1].uri == "s3://docs/good"
    assert [fault.index for fault in sifted.faults] in ([], [0])
