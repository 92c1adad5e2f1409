"""Leave out what need not be done again: an upload of what the index holds already.

Guarantee: an upload is left out only if the one before it, of the same document, had the same content, and the index
holds every chunk of it, made by the same model and in the same way. Its job ends as any other does. Whatever is not
known for certain is done: an upload whose content is not known before it is read, what was redriven, what has had
attachments, and everything after a loss of state or index. Uploads of one document keep their order.

State: hash buckets of what was last uploaded of each document, the newest MOST of each; and offload's pending uploads.
Dead letters: an index that stayed out of reach.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar
from zlib import crc32

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from connectors.spaces import Spaces
from connectors.vector_index.port import VectorIndex
from operators.chunk import ChunkPolicy
from operators.digests import digest_of
from operators.envelope import Envelope
from operators.extract import revision_of
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter, redrives
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import Fatal
from schemas.event import derive_id

X = TypeVar("X")

UNCHANGED = OffloadPolicy(dependency="vector_index", capacity=64, backlog=64, timeout_s=60.0, keep_key_order=True)
BUCKETS = 4096  # keys of the state
MOST = 512  # documents per bucket: two million in all, in some 200 MB
SNAPSHOT_VERSION = 1

_Snapshot = tuple[int, list[tuple[bytes, bytes]]]


@dataclass(frozen=True)
class SeenUpload:
    """An upload, and whether the one before it, of the same document, had the same content."""

    upload: DocumentUploaded
    again: bool


@dataclass(frozen=True)
class Sifted:
    """Uploads to work on, those that are done already, and dead letters. All must be consumed."""

    fresh: KeyedStream[Envelope[DocumentUploaded]]
    indexed: KeyedStream[Envelope[DocumentIndexed]]
    errs: KeyedStream[DeadLetter]


def content_of(upload: DocumentUploaded) -> str | None:
    """SHA-256 of the uploaded bytes, if it can be known without reading them."""
    if upload.op == "delete":
        return "deleted"
    return sha256(upload.text.encode()).hexdigest() if upload.text is not None else upload.sha256


def version_of(upload: DocumentUploaded, model: str, chunking: ChunkPolicy) -> str | None:
    """Names the chunks that come of an upload: by its content, and by how they are made."""
    content = content_of(upload)
    if content is None or upload.op == "delete":
        return None
    recipe = f"{model}/{chunking.size_tokens}/{chunking.overlap_tokens}/{chunking.size_chars}"
    return derive_id("version", content, upload.uri or "", recipe)


async def held_chunks(
    upload: DocumentUploaded, version: str, revision: int, name: str, vectors: VectorIndex
) -> int | None:
    """How many chunks of this version the index holds, if it holds all of them and no others of the document.

    They then are of this revision too, so that one between the two stays out when it comes late. What has had
    attachments is None, since those would have to be raised as well.
    """
    found = await vectors.states(name, tenant=upload.tenant, document_id=upload.document_id)
    wanted = f"{version}/{len(found)}"
    if not found or not all(point.visible and point.version == wanted and not point.children for point in found):
        return None
    older = [point.id for point in found if point.revision < revision]
    await vectors.show(name, older, tenant=upload.tenant, revision=revision)
    return len(found)


class _Bucket(StatefulBatchLogic[tuple[str, Envelope[DocumentUploaded]], tuple[str, Envelope[SeenUpload]], _Snapshot]):
    """What was last uploaded of some documents."""

    def __init__(self, resume: _Snapshot | None) -> None:
        version, contents = (SNAPSHOT_VERSION, []) if resume is None else resume
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"unchanged: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        self._contents = dict(contents)  # digests, by that of the document; the one uploaded last is last

    def on_batch(
        self, values: list[tuple[str, Envelope[DocumentUploaded]]]
    ) -> tuple[list[tuple[str, Envelope[SeenUpload]]], bool]:
        emitted = []
        for key, envelope in values:
            upload = envelope.body
            document = digest_of(f"{upload.tenant}/{upload.collection}/{upload.document_id}")
            former = self._contents.pop(document, None)
            content = content_of(upload)
            if content is not None:
                self._contents[document] = digest_of(content)
            again = content is not None and self._contents[document] == former
            again = again and redrives(envelope.record.headers) == 0
            emitted.append((key, envelope.carrying(SeenUpload(upload, again))))
        while len(self._contents) > MOST:
            del self._contents[next(iter(self._contents))]
        return emitted, False

    def snapshot(self) -> _Snapshot:
        return SNAPSHOT_VERSION, list(self._contents.items())


def _bucket(keyed: tuple[str, Envelope[DocumentUploaded]]) -> str:
    upload = keyed[1].body
    return f"{crc32(f'{upload.tenant}/{upload.collection}/{upload.document_id}'.encode()) % BUCKETS:03x}"


@operator
def unchanged(
    step_id: str,
    up: KeyedStream[Envelope[DocumentUploaded]],
    spaces: Spaces,
    vectors: VectorIndex,
    chunking: ChunkPolicy,
    runtime: Runtime,
) -> Sifted:
    """Part uploads that need work from those whose chunks are in the index already."""

    async def work(envelope: Envelope[SeenUpload]) -> DocumentUploaded | DocumentIndexed:
        upload = envelope.body.upload
        space = await spaces.of(upload.collection)
        version = version_of(upload, space.embedder.model, chunking)
        if version is not None and envelope.body.again:
            revision = revision_of(upload, envelope.record)
            chunks = await held_chunks(upload, version, revision, space.held_in, vectors)
            if chunks is not None:
                return DocumentIndexed(
                    job_id=upload.job_id,
                    tenant=upload.tenant,
                    document_id=upload.document_id,
                    collection=upload.collection,
                    uri=upload.uri,
                    revision=revision,
                    chunks=chunks,
                    model=space.embedder.model,
                )
        return upload.model_copy(update={"version": version})

    buckets = op.key_on("bucket", up, _bucket)
    seen = op.key_rm("seen", op.stateful_batch("last", buckets, _Bucket))
    looked: Outcome[DocumentUploaded | DocumentIndexed] = offload(
        "work", seen, work, body=SeenUpload, policy=UNCHANGED, runtime=runtime
    )
    fresh = op.filter_map_value("fresh", looked.oks, lambda envelope: _carrying(envelope, DocumentUploaded))
    indexed = op.filter_map_value("indexed", looked.oks, lambda envelope: _carrying(envelope, DocumentIndexed))
    return Sifted(fresh, indexed, looked.errs)


def _carrying(envelope: Envelope[DocumentUploaded | DocumentIndexed], body: type[X]) -> Envelope[X] | None:
    return envelope.carrying(envelope.body) if isinstance(envelope.body, body) else None
