"""Chunks to vectors.

Guarantee: a chunk's id is derived from what it says and which model embedded it, so a replay writes the same points.
State: offload's pending documents. Dead letters: what the model refuses.
"""

from collections import Counter
from collections.abc import Sequence

from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.embedder.port import Embedder
from operators.chunk import Chunk, ChunkedDocument
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.documents import DocumentEmbedded, DocumentExtracted, EmbeddedChunk
from schemas.event import derive_id

EMBED = OffloadPolicy(
    capacity=64,  # documents; the embedder batches the chunks of all that wait together
    backlog=64,
    timeout_s=600.0,  # a book of thousands of chunks on a slow CPU
    keep_key_order=True,
)


def chunk_ids(document: DocumentExtracted, chunks: Sequence[Chunk], model: str) -> list[str]:
    """One id per chunk: uuid5 of collection, tenant, document, model, text, and its occurrence if the text repeats.

    Not of the position: a paragraph inserted at the top leaves the ids of all that follow as they were.
    """
    seen: Counter[str] = Counter()
    ids = []
    for chunk in chunks:
        seen[chunk.text] += 1
        scope = (document.collection, document.tenant, document.document_id, model)
        ids.append(derive_id("chunk", *scope, chunk.text, str(seen[chunk.text])))
    return ids


async def embed_chunks(chunked: ChunkedDocument, embedder: Embedder) -> DocumentEmbedded:
    """Embed all chunks of a document; a delete has none."""
    document = chunked.document
    vectors = await embedder.embed([chunk.text for chunk in chunked.chunks])
    ids = chunk_ids(document, chunked.chunks, embedder.model)
    return DocumentEmbedded(
        job_id=document.job_id,
        tenant=document.tenant,
        document_id=document.document_id,
        collection=document.collection,
        op=document.op,
        uri=document.uri,
        revision=document.revision,
        children=document.children,
        version=document.version,
        model=embedder.model,
        dimensions=embedder.dimensions,
        chunks=tuple(
            EmbeddedChunk(
                chunk_id=chunk_id,
                ordinal=chunk.ordinal,
                label=chunk.label,
                text=chunk.text,
                vector=vector.astype("<f4").tobytes(),
            )
            for chunk_id, chunk, vector in zip(ids, chunked.chunks, vectors, strict=True)
        ),
    )


@operator
def embed(
    step_id: str, up: KeyedStream[Envelope[ChunkedDocument]], embedder: Embedder, runtime: Runtime
) -> Outcome[DocumentEmbedded]:
    """Embed the chunks of each document, in order per document."""

    async def work(envelope: Envelope[ChunkedDocument]) -> DocumentEmbedded:
        return await embed_chunks(envelope.body, embedder)

    return offload("work", up, work, body=ChunkedDocument, policy=EMBED, runtime=runtime)
