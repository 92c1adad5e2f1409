"""Vectors to the index.

Guarantee: when a document is reported as indexed, its points survive a crash and its former ones are gone. New points
are written before old ones are deleted, so that a reader never finds less than the old version. State: offload's
pending documents. Dead letters: what the index refuses.
"""

from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.vector_index.port import Point, VectorIndex
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.documents import DocumentEmbedded, DocumentIndexed

INDEX = OffloadPolicy(dependency="vector_index", capacity=64, backlog=64, timeout_s=60.0, keep_key_order=True)


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
        )
        for chunk in chunks
    ]


async def replace_document(document: DocumentEmbedded, vectors: VectorIndex) -> DocumentIndexed:
    """Make the index hold exactly this version of the document; a delete holds nothing."""
    written = points(document)
    await vectors.open(document.collection, document.dimensions)
    if written:
        await vectors.upsert(document.collection, written)
    keep = frozenset(point.id for point in written)
    await vectors.delete_document(
        document.collection, tenant=document.tenant, document_id=document.document_id, keep=keep
    )
    return DocumentIndexed(
        job_id=document.job_id,
        tenant=document.tenant,
        document_id=document.document_id,
        collection=document.collection,
        op=document.op,
        uri=document.uri,
        version=document.version,
        chunks=len(keep),
        model=document.model,
    )


@operator
def index(
    step_id: str, up: KeyedStream[Envelope[DocumentEmbedded]], vectors: VectorIndex, runtime: Runtime
) -> Outcome[DocumentIndexed]:
    """Write each document's points, in order per document."""

    async def work(envelope: Envelope[DocumentEmbedded]) -> DocumentIndexed:
        return await replace_document(envelope.body, vectors)

    return offload("work", up, work, body=DocumentEmbedded, policy=INDEX, runtime=runtime)
