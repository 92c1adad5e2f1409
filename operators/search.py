"""The tool `search`: passages from the index for a model that asks.

Guarantee: as retrieve's: a job searches its own tenant's documents only, in its request's collection. Arguments that
are no query are answered with what is wrong with them, so that the model can try again. State: offload's pending calls.
Dead letters: an index that stayed out of reach; the job then goes on without an answer.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from pydantic import BaseModel, Field, ValidationError

from connectors.spaces import Spaces
from connectors.vector_index.port import VectorIndex
from operators.envelope import Envelope
from operators.offload import Cancelled, Dropped, OffloadPolicy, Pending, offload
from operators.outcome import Outcome, not_the_end
from operators.runtime import Runtime
from schemas.requests import Tool
from schemas.tools import CONTENT_MAX_CHARS, ToolCompleted, ToolRequested

NAME = "search"
SEARCH = OffloadPolicy(dependency="vector_index", capacity=64, backlog=64, timeout_s=30.0)


class Query(BaseModel):
    """What the model has to give."""

    query: Annotated[str, Field(min_length=1, max_length=4000, description="What to look for, in words.")]
    passages: Annotated[int, Field(ge=1, le=20, description="How many passages to find.")] = 4


TOOL = Tool(
    name=NAME,
    description="Finds passages in the documents that are about a question.",
    parameters=Query.model_json_schema(),
)
"""What a request lists in its `tools` to offer it."""


async def search_documents(asked: ToolRequested, spaces: Spaces, vectors: VectorIndex) -> ToolCompleted:
    """The tool's answer to one call."""

    def answer(content: str, *, failed: bool = False) -> ToolCompleted:
        return ToolCompleted(
            job_id=asked.job_id,
            tenant=asked.tenant,
            call_id=asked.call_id,
            tool=asked.tool,
            content=content[:CONTENT_MAX_CHARS],
            failed=failed,
        )

    try:
        query = Query.model_validate_json(asked.arguments)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        return answer(f"wrong arguments: {'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}", failed=True)
    space = await spaces.of(asked.request.collection)
    vector = (await space.embedder.embed([query.query]))[0].astype("<f4").tobytes()
    hits = await vectors.search(space.held_in, vector, tenant=asked.tenant, limit=query.passages)
    found = "\n\n".join(f"[{number}] {hit.uri or hit.document_id}\n{hit.text}" for number, hit in enumerate(hits, 1))
    return answer(found or "no passage found")


@operator
def search(
    step_id: str,
    up: KeyedStream[Envelope[ToolRequested]],
    spaces: Spaces,
    vectors: VectorIndex,
    runtime: Runtime,
) -> Outcome[ToolCompleted]:
    """Answer the calls of this tool; calls of others are left to whoever serves those."""

    async def work(envelope: Envelope[ToolRequested]) -> ToolCompleted:
        return await search_documents(envelope.body, spaces, vectors)

    async def unless_cancelled(
        pending: Pending[ToolRequested], call: Callable[[], Awaitable[ToolCompleted]]
    ) -> ToolCompleted | Dropped:
        del pending
        try:
            return await call()
        except Cancelled:  # whoever asked ends the job
            return Dropped()

    mine = op.filter_value("mine", up, lambda envelope: envelope.body.tool == NAME)
    found = offload(
        "work",
        mine,
        work,
        body=ToolRequested,
        policy=SEARCH,
        runtime=runtime,
        around=unless_cancelled,
    )
    return Outcome(found.oks, op.map_value("unended", found.errs, not_the_end))
