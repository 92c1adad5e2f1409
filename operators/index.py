"""Vectors to the index.

Guarantee: when a document is reported as indexed, its points survive a crash and its former ones are gone. A reader
never finds less than the old version, nor half of the new one. A version that comes late, after a newer one or a
delete, changes nothing. What is attached to a document is uploaded only now that its points remember it. State:
offload's pending documents; what was deleted is remembered in the index itself. Dead letters: what the index refuses.
"""

import struct
from dataclasses import dataclass, replace

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.spaces import Spaces, held_in
from connectors.vector_index.port import Point, VectorIndex
from operators.attached import delete_of_attachment
from operators.embed import embed_again
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentEmbedded, DocumentIndexed, DocumentUploaded
from schemas.errors import Retryable
from schemas.event import derive_id

INDEX = OffloadPolicy(
    dependency="vector_index",
    capacity=64,
    backlog=64,
    timeout_s=60.0,
    keep_key_order=True,
    cancellable=False,  # once it is switched, the new version is what readers find
)
DELETED = "deleted"
"""The version of a document that is no more."""


@dataclass(frozen=True)
class Replaced:
    """What the index holds now; uploads of what is attached to it, and deletes of what no longer is."""

    indexed: DocumentIndexed
    family: tuple[DocumentUploaded, ...]


@dataclass(frozen=True)
class Indexed:
    """Documents that can be found, uploads and deletes of their attachments, dead letters. All must be consumed."""

    oks: KeyedStream[Envelope[DocumentIndexed]]
    family: KeyedStream[Envelope[DocumentUploaded]]
    errs: KeyedStream[DeadLetter]


def points(document: DocumentEmbedded) -> list[Point]:
    """The points of a document; each says of which version, and of how many chunks, it is a part."""
    chunks = document.chunks or ()
    version = None if document.version is None else f"{document.version}/{len(chunks)}"
    return [
        Point(
            id=chunk.chunk_id,
            tenant=document.tenant,
            document_id=document.document_id,
            uri=document.uri,
            ordinal=chunk.ordinal,
            label=chunk.label,
            text=chunk.text,
            vector=chunk.vector,
            version=version,
            revision=document.revision or 0,
        )
        for chunk in chunks
    ]


async def replace_document(document: DocumentEmbedded, vectors: VectorIndex) -> Replaced:
    """Make readers find exactly this version of the document, unless a newer one is there; a delete has no points.

    It is written to the collection of its model.

    Write new, verify, switch: what readers find never is less than the old version, whatever fails in between, and each
    step may be repeated. New points are hidden until the switch, which deletes the old ones; those of unchanged text
    stay, and are said to be of this version last.
    """
    name, revision = held_in(document.collection, document.model), document.revision or 0
    of_document = {"tenant": document.tenant, "document_id": document.document_id}
    await vectors.open(name, document.dimensions)
    held = await vectors.states(name, **of_document)
    current = [point for point in held if point.visible or point.version == DELETED]
    newest = max((point.revision for point in current), default=0)
    # Ever attached, since a crash may have kept deletes from going out.
    attached = max((point.children for point in current), default=0)
    if newest > revision:
        return Replaced(_indexed(document, sum(point.visible for point in held), superseded=True), ())

    most = max(attached, document.children)
    wanted = [replace(point, children=most) for point in points(document) or [_tombstone(document)]]
    found_already = {point.id for point in held if point.visible}
    fresh = [point for point in wanted if point.id not in found_already]
    await vectors.upsert(name, [replace(point, visible=False) for point in fresh])
    written = {point.id for point in await vectors.states(name, **of_document)}
    missing = sum(point.id not in written for point in fresh)
    if missing:
        raise Retryable(f"the index lost {missing} of {len(fresh)} points of document {document.document_id}")
    shown = [point.id for point in fresh if point.visible]
    keep = frozenset(point.id for point in wanted)
    await vectors.switch(name, shown, **of_document, revision=revision, keep=keep)
    await vectors.upsert(name, [point for point in wanted if point.id in found_already])
    detached = (delete_of_attachment(document, revision, place) for place in range(document.children, attached))
    indexed = _indexed(document, sum(point.visible for point in wanted), superseded=False)
    return Replaced(indexed, (*document.attached, *detached))


async def place_document(document: DocumentEmbedded, vectors: VectorIndex, spaces: Spaces) -> Replaced:
    """Replace a document where readers look for it, also if another model takes over meanwhile."""
    serving = await spaces.serving(document.collection)
    while True:
        if serving not in (None, held_in(document.collection, document.model)):  # another model has taken over since
            document = await embed_again(document, (await spaces.of(document.collection)).embedder)
        name = held_in(document.collection, document.model)
        replaced = await replace_document(document, vectors)
        if serving is None and await vectors.serving(document.collection) is None:
            await vectors.serve(document.collection, name)
        # A write may take longer than a reindex waits for those that began before its switch.
        serving = await spaces.serving(document.collection, fresh_s=0.0)
        if serving == name:
            return replaced


def _tombstone(document: DocumentEmbedded) -> Point:
    """Remembers, where readers never look, that a document was deleted, so that a late version stays out."""
    return Point(
        id=derive_id("tombstone", document.collection, document.tenant, document.document_id),
        tenant=document.tenant,
        document_id=document.document_id,
        uri=None,
        ordinal=0,
        label=None,
        text="",
        vector=struct.pack(f"<{document.dimensions}f", 1.0, *(0.0 for _ in range(document.dimensions - 1))),
        version=DELETED,
        revision=document.revision or 0,
        visible=False,
    )


def _indexed(document: DocumentEmbedded, chunks: int, *, superseded: bool) -> DocumentIndexed:
    return DocumentIndexed(
        job_id=document.job_id,
        tenant=document.tenant,
        document_id=document.document_id,
        collection=document.collection,
        op=document.op,
        uri=document.uri,
        revision=document.revision,
        version=document.version,
        chunks=chunks,
        model=document.model,
        superseded=superseded,
    )


@operator
def index(
    step_id: str, up: KeyedStream[Envelope[DocumentEmbedded]], vectors: VectorIndex, spaces: Spaces, runtime: Runtime
) -> Indexed:
    """Write each document's points, in order per document, where readers look for them."""

    async def work(envelope: Envelope[DocumentEmbedded]) -> Replaced:
        return await place_document(envelope.body, vectors, spaces)

    replaced = offload("work", up, work, body=DocumentEmbedded, policy=INDEX, runtime=runtime)
    oks = op.map_value("done", replaced.oks, lambda envelope: envelope.carrying(envelope.body.indexed))
    family = op.flat_map_value(
        "family", replaced.oks, lambda envelope: (envelope.carrying(each) for each in envelope.body.family)
    )
    return Indexed(oks, family, replaced.errs)
