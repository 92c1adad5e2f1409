"""Questions to passages.

Guarantee: a request sees passages of its own tenant only; one that is cancelled passes without any. State: offload's
pending requests. Dead letters: a request whose deadline passed; an index that stayed out of reach.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.spaces import Spaces
from connectors.vector_index.port import Hit, VectorIndex
from operators.envelope import Envelope
from operators.offload import Cancelled, OffloadPolicy, Pending, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.requests import RequestSubmitted

RETRIEVE = OffloadPolicy(dependency="vector_index", capacity=64, backlog=64, timeout_s=30.0)


@dataclass(frozen=True)
class RetrievedRequest:
    """A request with what was found for it; nothing is looked for if it only wants to generate."""

    request: RequestSubmitted
    hits: tuple[Hit, ...]  # best first
    retrieve_s: float


async def find_passages(request: RequestSubmitted, spaces: Spaces, vectors: VectorIndex) -> RetrievedRequest:
    """Embed what the user said last and search the request's collection by it."""
    began = monotonic()
    said = [turn.content for turn in request.turns if turn.role == "user"] or [request.turns[-1].content]
    space = await spaces.of(request.collection)
    question = await space.embedder.embed(said[-1:])
    hits = await vectors.search(
        space.held_in, question[0].astype("<f4").tobytes(), tenant=request.tenant, limit=request.passages
    )
    return RetrievedRequest(request, hits, monotonic() - began)


@operator
def retrieve(
    step_id: str,
    up: KeyedStream[Envelope[RequestSubmitted]],
    spaces: Spaces,
    vectors: VectorIndex,
    runtime: Runtime,
) -> Outcome[RetrievedRequest]:
    """Find the passages for each request; one that only wants to generate passes by, whatever the index does."""

    async def work(envelope: Envelope[RequestSubmitted]) -> RetrievedRequest:
        return await find_passages(envelope.body, spaces, vectors)

    async def unless_cancelled(
        pending: Pending[RequestSubmitted], call: Callable[[], Awaitable[RetrievedRequest]]
    ) -> RetrievedRequest:
        try:
            return await call()
        except Cancelled:  # it ends where its answer would be known, if there is one
            return RetrievedRequest(pending.envelope.body, (), 0.0)

    wants = op.branch("wants", up, _wants_passages)
    found = offload(
        "work",
        wants.trues,
        work,
        body=RequestSubmitted,
        policy=RETRIEVE,
        runtime=runtime,
        around=unless_cancelled,
    )
    bare = op.map_value("bare", wants.falses, _without_passages)
    return Outcome(op.merge("retrieved", found.oks, bare), found.errs)


def _wants_passages(keyed: tuple[str, Envelope[RequestSubmitted]]) -> bool:
    return keyed[1].body.kind == "answer"


def _without_passages(envelope: Envelope[RequestSubmitted]) -> Envelope[RetrievedRequest]:
    return envelope.carrying(RetrievedRequest(envelope.body, (), 0.0))
