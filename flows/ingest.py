"""documents.uploaded ─► extract ─► chunk ─► embed ─► index ─► documents.indexed; failures ─► documents.uploaded.dlq."""

from bytewax.dataflow import Dataflow

from connectors.embedder.port import Embedder
from connectors.object_store import ObjectStore
from connectors.parsers.port import Parser
from connectors.vector_index.port import VectorIndex
from operators.chunk import ChunkPolicy, chunk
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.embed import embed
from operators.extract import ExtractPolicy, extract
from operators.index import index
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentIndexed, DocumentUploaded


def build(
    runtime: Runtime,
    store: ObjectStore,
    parser: Parser,
    embedder: Embedder,
    vectors: VectorIndex,
    extraction: ExtractPolicy,
    chunking: ChunkPolicy,
) -> Dataflow:
    """The fused flow: a document from upload to index in one process."""
    flow = Dataflow("ingest")
    uploaded = consume("uploaded", flow, DocumentUploaded, runtime)
    extracted = extract("extract", uploaded.oks, store, parser, extraction, runtime)
    chunked = chunk("chunk", extracted.oks, embedder, chunking, runtime)
    embedded = embed("embed", chunked.oks, embedder, runtime)
    indexed = index("index", embedded.oks, vectors, runtime)
    produce("indexed", indexed.oks, DocumentIndexed, runtime)
    dead_letter("dlq", uploaded.errs, extracted.errs, chunked.errs, embedded.errs, indexed.errs, runtime=runtime)
    return flow
