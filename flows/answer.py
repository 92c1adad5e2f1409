"""requests.submitted ─► retrieve ─► infer ─► results.completed; failures ─► requests.submitted.dlq."""

from bytewax.dataflow import Dataflow

from connectors.embedder.port import Embedder
from connectors.llm.port import LLM
from connectors.vector_index.port import VectorIndex
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.infer import INFER, infer
from operators.offload import OffloadPolicy
from operators.produce import produce
from operators.retrieve import retrieve
from operators.runtime import Runtime
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted


def build(
    runtime: Runtime, embedder: Embedder, vectors: VectorIndex, llm: LLM, inference: OffloadPolicy = INFER
) -> Dataflow:
    """A request from question to answer."""
    flow = Dataflow("answer")
    submitted = consume("submitted", flow, RequestSubmitted, runtime)
    retrieved = retrieve("retrieve", submitted.oks, embedder, vectors, runtime)
    answered = infer("infer", retrieved.oks, llm, inference, runtime)
    produce("completed", answered.oks, ResultCompleted, runtime)
    dead_letter("dlq", submitted.errs, retrieved.errs, answered.errs, runtime=runtime)
    return flow
