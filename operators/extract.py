"""Documents to text: reads what an upload refers to, and parses it in a process that may die.

Guarantee: a hostile document costs one dead letter. State: offload's pending uploads (references and inline text).
Dead letters: a missing, too large or changed file (`sha256`), one without text, one that its parser cannot read.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.kafka.record import Record
from connectors.object_store import ObjectStore, shown_uri
from connectors.parsers.port import Parser
from operators.attached import upload_of_attachment
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.dead_letter import first_produced_at
from schemas.documents import DocumentExtracted, DocumentUploaded, SectionMark
from schemas.errors import Poison

EXTRACT = OffloadPolicy(
    dependency="object_store",
    capacity=4,  # two parser processes, and two documents that are being read meanwhile
    backlog=12,
    timeout_s=120.0,  # of reading and parsing, with the wait for a free parser
    keep_key_order=True,
)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ExtractPolicy:
    """Limits of one document."""

    max_document_bytes: int = 50_000_000  # of the file; what is larger belongs in parts
    max_depth: int = 5  # documents that one lies inside of: a report in a mail in a mail is at 2


def check_digest(data: bytes, upload: DocumentUploaded) -> None:
    """Raises Poison if the bytes are not those that the producer announced."""
    if upload.sha256 is None or upload.uri is None:
        return
    found = hashlib.sha256(data).hexdigest()
    if found != upload.sha256:
        raise Poison(
            f"{shown_uri(upload.uri)} has sha256 {found}, the upload announced {upload.sha256}: upload it again"
        )


def revision_of(upload: DocumentUploaded, record: Record) -> int:
    """What orders this version of the document among the others: the producer's number, else microseconds.

    An upload is not from later than Kafka has it: one wrong clock must not keep all later versions out. What is from
    before 1970 counts as from then.
    """
    if upload.revision is not None:
        return upload.revision
    produced_at = first_produced_at(record.headers, record.timestamp)
    return max(0, (min(upload.uploaded_at, produced_at) - _EPOCH) // timedelta(microseconds=1))


async def read_document(
    upload: DocumentUploaded, revision: int, store: ObjectStore, parser: Parser, policy: ExtractPolicy
) -> DocumentExtracted:
    """The text of an upload, and what is attached to it; a delete passes through without any."""
    parts: dict[str, object] = {}
    attached: tuple[DocumentUploaded, ...] = ()
    if upload.op == "upsert" and upload.depth > policy.max_depth:
        raise Poison(f"an attachment inside of {upload.depth} documents; the limit is {policy.max_depth}")
    if upload.text is not None:
        if not upload.text.strip():
            raise Poison("the inline text is blank: there is nothing to index")
        parts = {"text": upload.text, "media_type": "text/plain"}
    elif upload.uri is not None and upload.op == "upsert":
        data = await store.read(upload.uri, max_bytes=policy.max_document_bytes)
        check_digest(data, upload)
        parsed = await parser.parse(data, name=shown_uri(upload.uri))
        attached = tuple(
            [
                await upload_of_attachment(upload, revision, place, attachment, store)
                for place, attachment in enumerate(parsed.attachments)
            ]
        )
        sections = tuple(SectionMark(start=section.start, label=section.label) for section in parsed.sections)
        parts = {"text": parsed.text, "media_type": parsed.media_type, "title": parsed.title, "sections": sections}
    identity = upload.model_dump(include={"job_id", "tenant", "document_id", "collection", "op", "uri", "version"})
    family = {"revision": revision, "children": len(attached), "attached": attached}
    return DocumentExtracted.model_validate(identity | parts | family)


@operator
def extract(
    step_id: str,
    up: KeyedStream[Envelope[DocumentUploaded]],
    store: ObjectStore,
    parser: Parser,
    policy: ExtractPolicy,
    runtime: Runtime,
) -> Outcome[DocumentExtracted]:
    """Read and parse each upload, in order per document."""

    async def work(envelope: Envelope[DocumentUploaded]) -> DocumentExtracted:
        upload = envelope.body
        return await read_document(upload, revision_of(upload, envelope.record), store, parser, policy)

    return offload("work", up, work, body=DocumentUploaded, policy=EXTRACT, runtime=runtime)
