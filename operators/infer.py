"""Prompts to answers.

Guarantee: as offload's, and an answer once in the ledger is never inferred again (`operators.paid_once`). State:
offload's pending requests with their passages. Dead letters: a prompt that the model refuses; a model that failed at
every attempt; a passed deadline; and those of `paid_once`.
"""

import hashlib
from time import monotonic

from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.ledger.port import Ledger, Usage
from connectors.llm.port import LLM, Completion, Message, OfferedTool, Passage, Prompt, WantedTool
from connectors.vector_index.port import Hit
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.paid_once import AmbiguityPolicy, PaidOnce
from operators.retrieve import RetrievedRequest
from operators.runtime import Runtime
from schemas.errors import Retryable
from schemas.event import utc_now
from schemas.requests import ChatMessage, RequestSubmitted
from schemas.results import Citation, ResultCompleted, Timings, TokenCount

INFER = OffloadPolicy(
    dependency="llm",
    capacity=256,  # calls are waits: what limits them is the endpoint
    backlog=256,
    timeout_s=120.0,  # twice the slowest call that the flow is meant for
)


def prompt_of(request: RequestSubmitted, hits: tuple[Hit, ...]) -> Prompt:
    """What the model is asked."""
    return Prompt(
        job_id=request.job_id,
        messages=tuple(map(_message, request.turns)),
        passages=tuple(Passage(hit.text, _place(hit)) for hit in hits),
        max_tokens=request.max_tokens,
        tools=tuple(OfferedTool(tool.name, tool.description, tool.parameters) for tool in request.tools),
    )


def _message(turn: ChatMessage) -> Message:
    call = turn.tool_call
    wanted = None if call is None else WantedTool(call.call_id, call.tool, call.arguments)
    return Message(turn.role, turn.content, wanted, turn.tool_call_id)


def _place(hit: Hit) -> str:
    name = (hit.uri or hit.document_id).rsplit("/", 1)[-1]
    return f"{name}, {hit.label}" if hit.label else name


def cite(hit: Hit, number: int) -> Citation:
    """A hit as the answer's reader sees it."""
    return Citation(
        number=number,
        document_id=hit.document_id,
        chunk_id=hit.id,
        uri=hit.uri,
        label=hit.label,
        text=hit.text,
        score=hit.score,
    )


def request_hash(retrieved: RetrievedRequest) -> str:
    """SHA-256 of what is asked, whatever its JSON looked like: two requests of equal hash have the same answer.

    Without the passages: they may change between a request and its replay.
    """
    request = retrieved.request
    asked = f"{request.kind} {request.collection} {request.passages} {request.max_tokens}"
    turns = [f"{turn.role}:{len(turn.content)}:{turn.content}" for turn in request.turns]
    return hashlib.sha256("\n".join([asked, *turns]).encode("utf-8", errors="surrogatepass")).hexdigest()


def usage_of(result: ResultCompleted) -> Usage:
    """What the ledger keeps of the bill."""
    return Usage(result.usage.prompt_tokens, result.usage.completion_tokens)


async def complete(llm: LLM, prompt: Prompt) -> Completion:
    """The whole answer of one call."""
    async for part in llm.stream(prompt):
        if isinstance(part, Completion):
            return part
    raise Retryable("the model's stream ended without a completion")


async def answer(envelope: Envelope[RetrievedRequest], llm: LLM) -> ResultCompleted:
    """One inference, and its account."""
    retrieved = envelope.body
    request = retrieved.request
    began = monotonic()
    completion = await complete(llm, prompt_of(request, retrieved.hits))
    return ResultCompleted(
        job_id=request.job_id,
        tenant=request.tenant,
        kind=request.kind,
        text=completion.text,
        finish_reason="length" if completion.finish_reason == "length" else "stop",
        citations=tuple(cite(retrieved.hits[cited], cited + 1) for cited in completion.cited),
        usage=TokenCount(
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            estimated=completion.usage_estimated,
        ),
        model=completion.model,
        timings=Timings(
            queued_s=max((envelope.received_at - request.submitted_at).total_seconds(), 0.0),  # clocks differ
            retrieve_s=retrieved.retrieve_s,
            infer_s=monotonic() - began,
        ),
        completed_at=utc_now(),
    )


@operator
def infer(
    step_id: str,
    up: KeyedStream[Envelope[RetrievedRequest]],
    llm: LLM,
    ledger: Ledger,
    policy: OffloadPolicy,
    ambiguity: AmbiguityPolicy,
    runtime: Runtime,
) -> Outcome[ResultCompleted]:
    """Answer each request, and pay for it once."""

    async def work(envelope: Envelope[RetrievedRequest]) -> ResultCompleted:
        return await answer(envelope, llm)

    once = PaidOnce(ledger, ResultCompleted, request_hash, usage_of, policy.attempts, ambiguity)
    return offload(
        "work", up, work, body=RetrievedRequest, policy=policy, runtime=runtime, around=once, same=request_hash
    )
