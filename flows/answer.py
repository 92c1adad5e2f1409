"""From request to answer, through admission; what it uses, and what tools answer, comes back as events.

requests.submitted ─► dedup ─► guard ─► retrieve ─► budget ─► infer ─► results.completed, usage.tokens
tools.completed ─► resume ──┘   │                              └────► tools.requested
                                └► reviews.requested             failures ─► requests.submitted.dlq
"""

from dataclasses import dataclass, field

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from connectors.ledger.port import Ledger
from connectors.llm.port import LLM
from connectors.spaces import Spaces
from connectors.vector_index.port import VectorIndex
from operators.budget import BudgetPolicy, budget
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.dedup import DedupPolicy, dedup
from operators.guard import GuardPolicy, guard
from operators.infer import INFER, charge, infer, submission, tokens_used
from operators.offload import OffloadPolicy
from operators.paid_once import AmbiguityPolicy
from operators.produce import produce
from operators.repeat import repeat
from operators.resume import resume
from operators.retrieve import retrieve
from operators.runtime import Runtime
from schemas.budgets import BudgetChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted
from schemas.reviews import ReviewDecided
from schemas.tools import ToolCompleted, ToolRequested
from schemas.usage import TokensUsed


@dataclass(frozen=True)
class AnswerPolicy:
    """What its steps allow."""

    dedup: DedupPolicy = field(default_factory=DedupPolicy)
    guard: GuardPolicy = field(default_factory=GuardPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    inference: OffloadPolicy = INFER
    ambiguity: AmbiguityPolicy = field(default_factory=AmbiguityPolicy)


def build(
    runtime: Runtime,
    spaces: Spaces,
    vectors: VectorIndex,
    llm: LLM,
    ledger: Ledger,
    policy: AnswerPolicy = AnswerPolicy(),  # frozen
) -> Dataflow:
    """A request from question to answer."""
    flow = Dataflow("answer")
    submitted = consume("submitted", flow, RequestSubmitted, runtime)
    used = consume("used", flow, TokensUsed, runtime)
    budgets = consume("budgets", flow, BudgetChanged, runtime)
    decided = consume("decided", flow, ReviewDecided, runtime)
    asked = consume("asked", flow, ToolRequested, runtime)
    returned = consume("returned", flow, ToolCompleted, runtime)

    known = dedup("dedup", submitted.oks, submission, policy.dedup)
    repeated = repeat("repeat", known.repeats, ledger, runtime)
    resumed = resume("resume", asked.oks, returned.oks, runtime)
    wanted = op.merge("wanted", known.fresh, repeated.unknown, resumed.oks)
    guarded = guard("guard", wanted, used.oks, decided.oks, policy.guard, runtime)
    retrieved = retrieve("retrieve", guarded.oks, spaces, vectors, runtime)
    prices = policy.budget.prices
    afforded = budget("budget", retrieved.oks, used.oks, budgets.oks, charge(prices), policy.budget, runtime)
    answered = infer("infer", afforded.oks, llm, ledger, policy.inference, policy.ambiguity, runtime, prices)

    results = op.merge("results", answered.results, repeated.results)
    produce("completed", results, ResultCompleted, runtime, published=ledger.mark_published, before=tokens_used)
    produce("tools", answered.calls, ToolRequested, runtime, before=tokens_used)
    unreadable = (each.errs for each in (submitted, used, budgets, decided, asked, returned))
    stopped = (each.errs for each in (repeated, resumed, guarded, retrieved, afforded, answered))
    dead_letter("dlq", *unreadable, *stopped, runtime=runtime)
    return flow
