"""Prompts to answers.

Guarantee: as offload's, and an answer once in the ledger is never inferred again (`operators.paid_once`). What is
written of an answer is told meanwhile, on results.delta (`operators.narration`). Cancelled requests end here, whichever
step before has let them pass: the ledger is asked first, so that what has an answer does not end twice. State:
offload's pending requests with their passages. Dead letters: a prompt that the model refuses; a model that failed at
every attempt; a passed deadline; and those of `paid_once`.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TypeVar

import bytewax.operators as op
import structlog
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from prometheus_client import Counter

from connectors.ledger.port import Ledger, Usage
from connectors.llm.port import (
    LLM,
    Completion,
    Message,
    OfferedTool,
    Passage,
    Prompt,
    WantedTool,
    estimated_tokens,
    length_of,
)
from connectors.metric_labels import MODELS, TENANTS
from connectors.vector_index.port import Hit
from operators.account import Cost
from operators.budget import Charge
from operators.envelope import Envelope
from operators.narration import Narration
from operators.offload import Aloud, OffloadPolicy, Pending, offload
from operators.outcome import Outcome
from operators.paid_once import AmbiguityPolicy, PaidOnce
from operators.retrieve import RetrievedRequest
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter, redrives
from schemas.errors import Bill, HeadraceError, Poison, Retryable
from schemas.event import derive_id, utc_now
from schemas.prices import MONEY_UNITS, Prices
from schemas.requests import ChatMessage, RequestSubmitted
from schemas.results import Citation, ResultCompleted, Timings, TokenCount
from schemas.tools import ToolRequested
from schemas.usage import TokensUsed

A = TypeVar("A", ResultCompleted, ToolRequested)

log = structlog.get_logger()

TOKENS = Counter(
    "headrace_tokens_total",
    "Tokens of calls whose usage is known, or estimated, by direction: in (prompt), out (completion). Counted when the "
    "call ends, and so without repeats; answers that were refused are billed as well.",
    ["tenant", "model", "direction"],
)
COST = Counter(
    "headrace_cost_total", "What those tokens cost by HEADRACE_PRICES, in its currency.", ["tenant", "model"]
)

INFER = OffloadPolicy(
    dependency="llm",
    capacity=256,  # calls are waits: what limits them is the endpoint
    backlog=256,
    timeout_s=120.0,  # twice the slowest call that the flow is meant for
)


TOOL_TIMEOUT = timedelta(minutes=5)
"""How long a job waits for a tool before the model is told that there was no answer."""

LOGGED_CHARS = 2000  # of each message and of an answer, where somebody has asked for them in the log

MARKUP = 16  # tokens around each message, passage or tool, at most: 4 to 8 in the templates of current models
PROMPT_MARKUP = 128  # our own instruction, and what a template says once


def prompt_of(request: RequestSubmitted, hits: tuple[Hit, ...], redriven: int = 0) -> Prompt:
    """What the model is asked. `redriven`: how often."""
    return Prompt(
        job_id=request.job_id,
        messages=tuple(map(_message, request.turns)),
        passages=tuple(Passage(hit.text, _place(hit)) for hit in hits),
        max_tokens=request.max_tokens,
        tools=tuple(OfferedTool(tool.name, tool.description, tool.parameters) for tool in request.tools),
        redrives=redriven,
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
    return hash_of(retrieved.request)


def hash_of(request: RequestSubmitted) -> str:
    """The same of a bare request."""
    asked = f"{request.kind} {request.collection} {request.passages} {request.max_tokens}"
    turns = [f"{turn.role}:{len(turn.content)}:{turn.content}" for turn in request.turns]
    calls = [turn.tool_call.model_dump_json() for turn in request.turns if turn.tool_call is not None]
    tools = [tool.model_dump_json() for tool in request.tools]
    text = "\n".join([asked, *turns, *calls, *tools])
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def call_id(request: RequestSubmitted) -> str:
    """What the ledger calls an inference: by its job, and each later turn of a job with tools by its depth as well."""
    return f"{request.job_id}/{request.depth}" if request.turns[-1].role == "tool" else request.job_id


def asks_of(envelope: Envelope[RetrievedRequest]) -> str:
    """Names one inference: the job's, of this depth and this content, since it was redriven so often."""
    request = envelope.body.request
    turn = f"{request.depth}/{redrives(envelope.record.headers)}"
    return derive_id("admission", request.job_id, turn, request_hash(envelope.body))


def submission(envelope: Envelope[RequestSubmitted]) -> str:
    """Names one submission of a job: the first, or one that was redriven."""
    return f"{envelope.body.job_id}/{redrives(envelope.record.headers)}"


def cost_of(prices: Prices) -> Callable[[RetrievedRequest], Cost]:
    """The most that an inference may use.

    No tokenizer makes more tokens of a text than it has bytes: the byte-level ones that models use merge bytes, never
    split them. Each message and passage has some tokens of markup besides.
    """

    def cost(retrieved: RetrievedRequest) -> Cost:
        request = retrieved.request
        texts = [turn.content for turn in request.turns]
        texts += [turn.tool_call.arguments for turn in request.turns if turn.tool_call is not None]
        texts += [tool.model_dump_json() for tool in request.tools]
        texts += [f"{_place(hit)} {hit.text}" for hit in retrieved.hits]
        read = PROMPT_MARKUP + sum(len(text.encode("utf-8", errors="replace")) + MARKUP for text in texts)
        return Cost(read + request.max_tokens, prices.money(None, read, request.max_tokens))

    return cost


def charge(prices: Prices) -> Charge[RetrievedRequest]:
    """How inferences are charged to their tenants."""
    return Charge(RetrievedRequest, cost_of(prices), asks_of)


Answer = ResultCompleted | ToolRequested


def stored_answer(stored: bytes) -> Answer:
    """An answer from the ledger."""
    is_call = "tool" in json.loads(stored)
    return ToolRequested.model_validate_json(stored) if is_call else ResultCompleted.model_validate_json(stored)


def tokens_used(envelope: Envelope[ResultCompleted] | Envelope[ToolRequested]) -> Iterator[TokensUsed]:
    """What becomes of what a budget has reserved for the inference; nothing, if none was asked.

    An answer that an earlier admission has paid for is charged to that one alone.
    """
    job, body = envelope.job, envelope.body
    if job.admission_id is None:
        return
    paid = body.admission_id == job.admission_id
    answered = Bill(body.model, body.usage.prompt_tokens, body.usage.completion_tokens, body.usage.estimated)
    bill = answered.plus(job.billed) if paid else job.billed
    yield TokensUsed(
        job_id=job.job_id,
        tenant=job.tenant,
        admission_id=job.admission_id,
        root_job_id=job.root or job.job_id,
        model=None if bill is None else bill.model,
        prompt_tokens=0 if bill is None else bill.prompt_tokens,
        completion_tokens=0 if bill is None else bill.completion_tokens,
        estimated=bill is not None and bill.estimated,
        used_at=body.completed_at if isinstance(body, ResultCompleted) else body.requested_at,
    )


def usage_of(result: Answer) -> Usage:
    """What the ledger keeps of the bill."""
    return Usage(result.usage.prompt_tokens, result.usage.completion_tokens)


async def complete(llm: LLM, prompt: Prompt, narration: Narration) -> Completion:
    """The whole answer of one call, told while it is written."""
    with narration:
        async for part in llm.stream(prompt):
            if isinstance(part, Completion):
                narration.end(part.text)
                return part
            narration.add(part.text)
    raise Retryable("the model's stream ended without a completion")


class Meter:
    """Counts what calls use, and cost."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._counters: dict[tuple[str, str], tuple[Counter, Counter, Counter]] = {}  # bounded, as the labels are

    def count(self, tenant: str, bill: Bill) -> None:
        """One call."""
        labels = TENANTS.label(tenant), MODELS.label(bill.model)
        counters = self._counters.get(labels)
        if counters is None:
            counters = TOKENS.labels(*labels, "in"), TOKENS.labels(*labels, "out"), COST.labels(*labels)
            self._counters[labels] = counters
        read, written, cost = counters
        read.inc(bill.prompt_tokens)
        written.inc(bill.completion_tokens)
        money = self._prices.money(bill.model, bill.prompt_tokens, bill.completion_tokens)
        if money:
            cost.inc(money / MONEY_UNITS)


async def answer(pending: Pending[RetrievedRequest], llm: LLM, meter: Meter, *, log_content: bool = False) -> Answer:
    """One inference, and its account; or the tool that the model wants first."""
    envelope = pending.envelope
    retrieved = envelope.body
    request = retrieved.request
    began = monotonic()
    prompt = prompt_of(request, retrieved.hits, redrives(envelope.record.headers))
    narration = Narration(pending)
    try:
        completion = await complete(llm, prompt, narration)
    except asyncio.CancelledError:
        if pending.cancelled is not None:  # what was written until then is billed
            read, written = estimated_tokens(length_of(prompt)), estimated_tokens(narration.chars)
            bill = Bill(llm.model, read, written, estimated=True)
            pending.charge(bill)
            meter.count(request.tenant, bill)
        raise
    except HeadraceError as error:
        if error.bill is not None:
            meter.count(request.tenant, error.bill)
        raise
    if log_content:
        asked = [f"{message.role}: {message.content[:LOGGED_CHARS]}" for message in prompt.messages]
        log.debug("call", prompt=asked, answer=completion.text[:LOGGED_CHARS])
    usage = TokenCount(
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        estimated=completion.usage_estimated,
    )
    meter.count(request.tenant, Bill(completion.model, usage.prompt_tokens, usage.completion_tokens, usage.estimated))
    if completion.wants is not None:
        return _tool_request(request, completion, completion.wants, usage, envelope.job.admission_id)
    return ResultCompleted(
        job_id=request.job_id,
        tenant=request.tenant,
        kind=request.kind,
        text=completion.text,
        finish_reason="length" if completion.finish_reason == "length" else "stop",
        citations=tuple(cite(retrieved.hits[cited], cited + 1) for cited in completion.cited),
        usage=usage,
        admission_id=envelope.job.admission_id,
        call_id=narration.told_as,
        callback_url=request.callback_url,
        model=completion.model,
        timings=Timings(
            queued_s=max((envelope.received_at - request.submitted_at).total_seconds(), 0.0),  # clocks differ
            retrieve_s=retrieved.retrieve_s,
            infer_s=monotonic() - began,
        ),
        completed_at=utc_now(),
    )


def _tool_request(
    request: RequestSubmitted, completion: Completion, wanted: WantedTool, usage: TokenCount, admission_id: str | None
) -> ToolRequested:
    """Raises Poison, with the bill, if the request does not offer the tool."""
    if wanted.name not in {tool.name for tool in request.tools}:
        refused = Poison(f"the model asks for tool {wanted.name!r:.100}, which the request does not offer")
        refused.bill = Bill(completion.model, usage.prompt_tokens, usage.completion_tokens, usage.estimated)
        raise refused
    return ToolRequested(
        job_id=request.job_id,
        tenant=request.tenant,
        call_id=derive_id("call", request.job_id, str(request.depth), wanted.call_id),
        tool=wanted.name,
        arguments=wanted.arguments,
        depth=request.depth + 1,
        model=completion.model,
        usage=usage,
        admission_id=admission_id,
        said=completion.text,
        request=request.model_copy(update={"depth": request.depth + 1, "root_job_id": request.root}),
        answer_until=utc_now() + TOOL_TIMEOUT,
    )


@dataclass(frozen=True)
class Answered:
    """Results, tools that models want, and the dead letters. All must be consumed."""

    results: KeyedStream[Envelope[ResultCompleted]]
    calls: KeyedStream[Envelope[ToolRequested]]
    errs: KeyedStream[DeadLetter]


@operator
def infer(
    step_id: str,
    up: KeyedStream[Envelope[RetrievedRequest]],
    llm: LLM,
    ledger: Ledger,
    policy: OffloadPolicy,
    ambiguity: AmbiguityPolicy,
    runtime: Runtime,
    prices: Prices,
) -> Answered:
    """Answer each request, and pay for it once; an answer may be the wish for a tool. Metrics alone need `prices`."""
    meter = Meter(prices)

    async def work(pending: Pending[RetrievedRequest]) -> Answer:
        return await answer(pending, llm, meter, log_content=runtime.log_content)

    once = PaidOnce(ledger, stored_answer, _call_id, request_hash, usage_of, policy.attempts, ambiguity)
    worked: Outcome[Answer] = offload(
        "work", up, Aloud(work), body=RetrievedRequest, policy=policy, runtime=runtime, around=once, same=_same
    )
    results = op.filter_map_value("results", worked.oks, lambda envelope: _carrying(envelope, ResultCompleted))
    calls = op.filter_map_value("calls", worked.oks, lambda envelope: _carrying(envelope, ToolRequested))
    return Answered(results, calls, worked.errs)


def _carrying(envelope: Envelope[Answer], body: type[A]) -> Envelope[A] | None:
    return envelope.carrying(envelope.body) if isinstance(envelope.body, body) else None


def _same(envelope: Envelope[RetrievedRequest]) -> str:
    """Until the same time, too: what ends at one deadline must not end a message that has a later one.

    And for the same tenant: another one's request under this id is to be refused, not to end with this one.
    """
    return f"{envelope.job.deadline}/{asks_of(envelope)}/{envelope.job.tenant}"


def _call_id(envelope: Envelope[RetrievedRequest]) -> str:
    return call_id(envelope.body.request)
