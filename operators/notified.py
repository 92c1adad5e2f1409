"""An object store's notifications to uploads: what is put into a bucket gets indexed, what is removed goes.

Guarantee: an object is the same document as under a plain upload of its URI; a notification that is delivered again
gives the same jobs. State: none. Dead letters: one for all records of a notification that cannot be followed (a bucket
that nobody owns, a key that no URI can carry, a malformed record), holding these alone: the others are done, and a
redrive does not repeat them, since by then they may be outdated.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import unquote_plus

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from pydantic import ValidationError

from operators.envelope import Envelope, Job, job_of
from operators.outcome import Outcome, attempt, bury, flow_step, split
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentUploaded, Operation
from schemas.errors import Poison
from schemas.event import derive_id
from schemas.notifications import BucketNotified, BucketScope, ObjectNotified

CREATED = "ObjectCreated:"
REMOVED = frozenset(
    {
        "ObjectRemoved:Delete",
        "ObjectRemoved:DeleteMarkerCreated",
        "ObjectRemoved:DeleteAllVersions",  # MinIO
        "LifecycleExpiration:Delete",
        "LifecycleExpiration:DeleteMarkerCreated",
    }
)
SHOWN_FAULTS = 5  # of a dead letter's records: a screenful

Buckets = Mapping[str, BucketScope]
"""Whose documents each bucket holds (HEADRACE_BUCKETS); empty: all are the default tenant's."""


@dataclass(frozen=True)
class Fault:
    """A record that cannot be followed."""

    index: int  # in its notification, from 0
    tenant: str
    reason: str


@dataclass(frozen=True)
class Sifted:
    """What a notification asks for, and what of it cannot be done."""

    uploads: tuple[DocumentUploaded, ...]
    faults: tuple[Fault, ...]


def decode_key(key: str) -> str:
    """An object's key as it is. Raises Poison for one that no document URI can carry."""
    try:
        decoded = unquote_plus(key, errors="strict")
        decoded.encode()
    except UnicodeError as error:
        raise Poison(f"key {key!r:.200} is no UTF-8") from error
    if "::" in decoded or ".." in decoded.split("/") or "?versionId=" in decoded:
        raise Poison(f"key {key!r:.200} cannot be read by its URI: it holds .., :: or ?versionId=; rename it")
    return decoded


def _operation(name: str) -> Operation | None:
    """What an event means for a document, if it means anything: tags, permissions and restored copies do not."""
    if name.startswith(CREATED):
        return "upsert"
    return "delete" if name in REMOVED else None


def upload_of(record: ObjectNotified, buckets: Buckets) -> DocumentUploaded | None:
    """The upload that a record stands for, if it stands for any. Raises Poison."""
    name = record.event_name.removeprefix("s3:")
    operation = _operation(name)
    if operation is None:
        return None
    bucket, stored = record.s3.bucket.name, record.s3.object
    scope = buckets.get(bucket) if buckets else BucketScope()
    if scope is None:
        raise Poison(f"bucket {bucket} belongs to nobody; add it to HEADRACE_BUCKETS, or stop its notifications")
    key = decode_key(stored.key)
    if key.endswith("/"):  # a folder, as consoles make them; no document has such a URI
        if operation == "delete" or not stored.size:
            return None
        raise Poison(f"key {stored.key!r:.200} ends with / and has content, which cannot be read by its URI; rename it")
    try:
        document = DocumentUploaded.model_validate(
            {"tenant": scope.tenant, "collection": scope.collection, "uri": f"s3://{bucket}/{key}"}
            | {"uploaded_at": record.event_time}
        )
    except ValidationError as error:
        raise Poison(f"key {stored.key!r:.200} makes no valid upload: {error.errors()[0]['msg']}") from error
    moment = stored.sequencer or record.event_time.isoformat()
    job_id = derive_id("notified", document.document_id, moment, stored.etag or "", name)
    return document.model_copy(update={"op": operation, "job_id": job_id})


def _malformed(record: object) -> str:
    try:
        ObjectNotified.model_validate(record)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, fault['loc'])) or 'record'}: {fault['msg']}"
    return "malformed"


def _tenant(record: ObjectNotified, buckets: Buckets) -> str:
    return buckets.get(record.s3.bucket.name, BucketScope()).tenant


def sift(notification: BucketNotified, buckets: Buckets) -> Sifted:
    """The uploads of a notification, in its order, and its faults."""
    uploads: list[DocumentUploaded] = []
    faults: list[Fault] = []
    for index, record in enumerate(notification.records):
        if not isinstance(record, ObjectNotified):
            faults.append(Fault(index, BucketScope().tenant, _malformed(record)))
            continue
        try:
            upload = upload_of(record, buckets)
        except Poison as error:
            faults.append(Fault(index, _tenant(record, buckets), str(error)))
        else:
            uploads += [] if upload is None else [upload]
    return Sifted(tuple(uploads), tuple(faults))


def dead_letter_of(envelope: Envelope[Sifted], *, step: str) -> DeadLetter:
    """The one dead letter of a notification's faults. Its message is the notification with these records alone."""
    faults = envelope.body.faults
    notification = json.loads(envelope.record.value or b"{}")
    total = len(notification["Records"])
    notification["Records"] = [notification["Records"][fault.index] for fault in faults]
    reasons = [f"record {fault.index + 1} of {total}: {fault.reason}" for fault in faults[:SHOWN_FAULTS]]
    more = len(faults) - len(reasons)
    message = "; ".join(reasons) + (f"; and {more} more" if more else "")
    job = Job(envelope.job.job_id, faults[0].tenant)
    record = replace(envelope.record, value=json.dumps(notification).encode())
    return bury(job, record, Poison(message), step=step, received_at=envelope.received_at)


@operator
def uploads(step_id: str, up: KeyedStream[Envelope[BucketNotified]], buckets: Buckets) -> Outcome[DocumentUploaded]:
    """The uploads and deletes that each notification stands for, keyed by document."""
    step = flow_step(step_id)

    def part(
        keyed: tuple[str, Envelope[Sifted]],
    ) -> Iterable[tuple[str, Envelope[DocumentUploaded] | DeadLetter]]:
        _, envelope = keyed
        for upload in envelope.body.uploads:
            yield upload.key, Envelope(job_of(upload), upload, envelope.record, envelope.received_at)
        if envelope.body.faults:
            letter = dead_letter_of(envelope, step=step)
            yield letter.job_id, letter

    sifted = attempt("sift", up, partial(sift, buckets=buckets))
    parted = split(op.flat_map("part", sifted.oks, part))
    return Outcome(parted.oks, op.merge("failed", sifted.errs, parted.errs))
