"""documents.extracted ─► check out ─► chunk ─► embed ─► check in ─► documents.embedded; failures ─► *.dlq."""

from bytewax.dataflow import Dataflow

from connectors.object_store import ObjectStore
from connectors.spaces import Spaces
from operators.chunk import ChunkPolicy, chunk
from operators.claim_check import check_in, check_out
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.embed import embed
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentEmbedded, DocumentExtracted


def build(runtime: Runtime, store: ObjectStore, spaces: Spaces, chunking: ChunkPolicy) -> Dataflow:
    """The second third of `ingest`: where the GPU is."""
    flow = Dataflow("embed")
    extracted = consume("extracted", flow, DocumentExtracted, runtime)
    loaded = check_out("check_out", extracted.oks, DocumentExtracted, store, runtime)
    chunked = chunk("chunk", loaded.oks, spaces, chunking, runtime)
    embedded = embed("embed", chunked.oks, spaces, runtime)
    stored = check_in("check_in", embedded.oks, DocumentEmbedded, store, runtime)
    produce("embedded", stored.oks, DocumentEmbedded, runtime)
    dead_letter("dlq", extracted.errs, loaded.errs, chunked.errs, embedded.errs, stored.errs, runtime=runtime)
    return flow
