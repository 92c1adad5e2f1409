"""documents.uploaded ─► unchanged ─► extract ─► chunk ─► embed ─► index ─► documents.indexed; failures ─► *.dlq.

What is attached to a document is uploaded, and deleted, by `index`: it comes back as a document of its own.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from connectors.object_store import ObjectStore
from connectors.parsers.port import Parser
from connectors.spaces import Spaces
from connectors.vector_index.port import VectorIndex
from operators.chunk import ChunkPolicy, chunk
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.embed import embed
from operators.extract import ExtractPolicy, extract
from operators.index import index
from operators.produce import produce
from operators.runtime import Runtime
from operators.unchanged import unchanged
from schemas.documents import DocumentIndexed, DocumentUploaded


def build(
    runtime: Runtime,
    store: ObjectStore,
    parser: Parser,
    spaces: Spaces,
    vectors: VectorIndex,
    extraction: ExtractPolicy,
    chunking: ChunkPolicy,
) -> Dataflow:
    """The fused flow: a document from upload to index in one process."""
    flow = Dataflow("ingest")
    uploaded = consume("uploaded", flow, DocumentUploaded, runtime)
    sifted = unchanged("unchanged", uploaded.oks, spaces, vectors, chunking, runtime)
    extracted = extract("extract", sifted.fresh, store, parser, extraction, runtime)
    chunked = chunk("chunk", extracted.oks, spaces, chunking, runtime)
    embedded = embed("embed", chunked.oks, spaces, runtime)
    indexed = index("index", embedded.oks, vectors, spaces, runtime)
    produce("attached", indexed.family, DocumentUploaded, runtime, beside=True)
    produce("indexed", op.merge("done", indexed.oks, sifted.indexed), DocumentIndexed, runtime)
    failures = (each.errs for each in (uploaded, sifted, extracted, chunked, embedded, indexed))
    dead_letter("dlq", *failures, runtime=runtime)
    return flow
