"""tools.requested ─► search ─► tools.completed: a tool for models; failures ─► tools.requested.dlq."""

from bytewax.dataflow import Dataflow

from connectors.spaces import Spaces
from connectors.vector_index.port import VectorIndex
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.produce import produce
from operators.runtime import Runtime
from operators.search import search
from schemas.tools import ToolCompleted, ToolRequested


def build(runtime: Runtime, spaces: Spaces, vectors: VectorIndex) -> Dataflow:
    """The sample of a tool flow: copy it for a tool of your own."""
    flow = Dataflow("search")
    asked = consume("asked", flow, ToolRequested, runtime)
    found = search("search", asked.oks, spaces, vectors, runtime)
    produce("answered", found.oks, ToolCompleted, runtime)
    dead_letter("dlq", asked.errs, found.errs, runtime=runtime)
    return flow
