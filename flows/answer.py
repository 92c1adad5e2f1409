"""requests.submitted ─► retrieve ─► infer ─► results.completed; failures ─► requests.submitted.dlq."""

from bytewax.dataflow import Dataflow

from connectors.embedder.port import Embedder
from connectors.ledger.port import Ledger
from connectors.llm.port import LLM
from connectors.vector_index.port import VectorIndex
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.infer import INFER, infer
from operators.offload import OffloadPolicy
from operators.paid_once import AmbiguityPolicy
from operators.produce import produce
from operators.retrieve import retrieve
from operators.runtime import Runtime
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted


def build(
    runtime: Runtime,
    embedder: Embedder,
    vectors: VectorIndex,
    llm: LLM,
    ledger: Ledger,
    inference: OffloadPolicy = INFER,
    ambiguity: AmbiguityPolicy = AmbiguityPolicy(),  # noqa: B008  # frozen
) -> Dataflow:
    """A request from question to answer."""
    flow = Dataflow("answer")
    submitted = consume("submitted", flow, RequestSubmitted, runtime)
    retrieved = retrieve("retrieve", submitted.oks, embedder, vectors, runtime)
    answered = infer("infer", retrieved.oks, llm, ledger, inference, ambiguity, runtime)
    produce("completed", answered.oks, ResultCompleted, runtime, published=ledger.mark_published)
    dead_letter("dlq", submitted.errs, retrieved.errs, answered.errs, runtime=runtime)
    return flow
