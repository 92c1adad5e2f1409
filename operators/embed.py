"""Chunks to vectors.

Guarantee: a chunk's id is derived from what it says and which model embedded it, so a replay writes the same points.
A document may take as long as it needs while some of its chunks are embedded every SLICE_TIMEOUT_S. State: offload's
pending documents. Dead letters: what the model refuses.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.embedder.port import Embedder
from connectors.spaces import Spaces
from operators.chunk import Chunk, ChunkedDocument
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.documents import DocumentEmbedded, DocumentEvent, EmbeddedChunk
from schemas.errors import Poison, Retryable
from schemas.event import derive_id

EMBED = OffloadPolicy(
    capacity=64,  # documents; the embedder batches the chunks of all that wait together
    backlog=64,
    timeout_s=inf,  # 64 books share the model and end together, hours after they began: SLICE_TIMEOUT_S counts
    keep_key_order=True,
)
SLICE_TEXTS = 64
"""So many chunks of a document go to the model in one call; an embedder that remembers keeps what a call has made."""
SLICE_TIMEOUT_S = 600.0
"""For one slice: those of EMBED.capacity documents, which take turns, need 141 s on a CPU of 29 chunks a second."""


def chunk_ids(document: DocumentEvent, chunks: Sequence[Chunk | EmbeddedChunk], model: str) -> list[str]:
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
    """Embed all chunks of a document; a delete has none. Raises Retryable if a slice takes too long."""
    document = chunked.document
    vectors = await _vectors(chunked.chunks, embedder)
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
        attached=document.attached,
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


async def _vectors(chunks: Sequence[Chunk | EmbeddedChunk], embedder: Embedder) -> list[npt.NDArray[np.float32]]:
    """One per chunk, in their order, slice by slice."""
    rows: list[npt.NDArray[np.float32]] = []
    for first in range(0, len(chunks), SLICE_TEXTS):
        texts = [chunk.text for chunk in chunks[first : first + SLICE_TEXTS]]
        try:
            async with asyncio.timeout(SLICE_TIMEOUT_S):
                rows.extend(await embedder.embed(texts))
        except TimeoutError as error:
            raise Retryable(
                f"{embedder.model} embedded no {len(texts)} chunks within {SLICE_TIMEOUT_S:g} s, of "
                f"{len(chunks)} of which {first} were done"
            ) from error
    return rows


async def embed_again(document: DocumentEmbedded, embedder: Embedder) -> DocumentEmbedded:
    """The same chunks by another model. Raises Poison if it does not read the longest one whole."""
    chunks = document.chunks or ()
    longest = max((len(embedder.tokenizer.offsets(chunk.text)) for chunk in chunks), default=0)
    if longest > embedder.max_tokens:
        raise Poison(
            f"document {document.document_id} has a chunk of {longest} tokens, and {embedder.model} reads at most "
            f"{embedder.max_tokens}: set HEADRACE_CHUNK_TOKENS to that or less, and upload the document again"
        )
    vectors = await _vectors(chunks, embedder)
    ids = chunk_ids(document, chunks, embedder.model)
    fresh = tuple(
        chunk.model_copy(update={"chunk_id": chunk_id, "vector": vector.astype("<f4").tobytes()})
        for chunk_id, chunk, vector in zip(ids, chunks, vectors, strict=True)
    )
    return document.model_copy(
        update={"model": embedder.model, "dimensions": embedder.dimensions, "chunks": fresh, "version": None}
    )


@operator
def embed(
    step_id: str, up: KeyedStream[Envelope[ChunkedDocument]], spaces: Spaces, runtime: Runtime
) -> Outcome[DocumentEmbedded]:
    """Embed the chunks of each document, in order per document."""

    async def work(envelope: Envelope[ChunkedDocument]) -> DocumentEmbedded:
        space = await spaces.of(envelope.body.document.collection)
        return await embed_chunks(envelope.body, space.embedder)

    return offload("work", up, work, body=ChunkedDocument, policy=EMBED, runtime=runtime)
