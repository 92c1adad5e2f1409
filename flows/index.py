"""documents.embedded ─► check out ─► index ─► documents.indexed; failures ─► documents.embedded.dlq."""

from bytewax.dataflow import Dataflow

from connectors.object_store import ObjectStore
from connectors.spaces import Spaces
from connectors.vector_index.port import VectorIndex
from operators.claim_check import check_out
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.index import index
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentEmbedded, DocumentIndexed, DocumentUploaded


def build(runtime: Runtime, store: ObjectStore, vectors: VectorIndex, spaces: Spaces) -> Dataflow:
    """The last third of `ingest`: writes what was embedded elsewhere."""
    flow = Dataflow("index")
    embedded = consume("embedded", flow, DocumentEmbedded, runtime)
    loaded = check_out("check_out", embedded.oks, DocumentEmbedded, store, runtime)
    indexed = index("index", loaded.oks, vectors, spaces, runtime)
    produce("attached", indexed.family, DocumentUploaded, runtime, beside=True)
    produce("indexed", indexed.oks, DocumentIndexed, runtime)
    dead_letter("dlq", embedded.errs, loaded.errs, indexed.errs, runtime=runtime)
    return flow
