"""Around a call that costs money: the ledger is asked before it and told after it.

Guarantee: once an answer is in the ledger, its job is never called for again; a replay or a duplicate gives the stored
answer. Between the claim and the commit of its answer a crash leaves the job ambiguous: the provider may have billed
the call. What then happens is the tenant's choice, and is counted. Nothing closes those milliseconds from this side.

A job that was cancelled is given up here, unless its answer is in the ledger: then it was too late.

Dead letters: another request under the same job_id (the first one goes on); a job that was given up before, until it is
redriven, or submitted again with a later deadline if that ended it; an ambiguous one, where the tenant says so.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Literal, TypeVar
from uuid import uuid4

import structlog
from prometheus_client import Counter

from connectors.ledger.port import Attempt, Claim, Conflict, Failure, GivenUp, Held, Ledger, State, Stored, Usage
from connectors.metric_labels import TENANTS
from operators.envelope import Envelope
from operators.offload import Cancelled, Dropped, Pending
from schemas.dead_letter import redrives
from schemas.errors import Fatal, GaveUp, HeadraceError, Poison, Refused, Retryable, Unavailable
from schemas.event import Event
from schemas.jobs import JobState

X = TypeVar("X")
E = TypeVar("E", bound=Event)

log = structlog.get_logger()

AMBIGUOUS = Counter(
    "headrace_ambiguous_claims_total",
    "Jobs whose call a crash interrupted: the provider may have billed it",
    ["tenant"],
)
TAKEN_OVER = "another process took over the job while this one was stalled"
HELD_RETRY_S = 1.0  # a claim ends with its call, seconds to minutes; or with the lease of a dead process, 30 s

_STATES: Mapping[State, JobState] = {
    "running": JobState.RUNNING,
    "waiting": JobState.RETRYING,
    "done": JobState.COMPLETED,
    "given_up": JobState.DEAD_LETTERED,
}

Choice = Literal["retry", "dead_letter"]


@dataclass(frozen=True)
class AmbiguityPolicy:
    """What becomes of a job whose call may have been billed, and whose answer is unknown."""

    default: Choice = "retry"  # an answer is promised; a second bill for one call per crash is the lesser evil
    tenants: Mapping[str, Choice] = field(default_factory=dict)

    def of(self, tenant: str) -> Choice:
        """The tenant's choice."""
        return self.tenants.get(tenant, self.default)


@dataclass(frozen=True)
class PaidOnce(Generic[X, E]):
    """Claim, call, commit: the `around` of an offloaded step whose calls cost money."""

    ledger: Ledger  # that is waited for: PatientLedger
    decode: Callable[[bytes], E]  # of a stored result
    call_id: Callable[[Envelope[X]], str]  # names what is paid once: a job, or one turn of it
    request_hash: Callable[[X], str]  # of everything that decides the answer
    usage: Callable[[E], Usage]
    attempts: int  # the step's own bound
    ambiguity: AmbiguityPolicy
    _run: str = field(default_factory=lambda: uuid4().hex, init=False)  # with a number, a token that nobody else has
    _numbers: Iterator[int] = field(default_factory=count, init=False)

    async def __call__(self, pending: Pending[X], call: Callable[[], Awaitable[E]]) -> E | Dropped:
        """One attempt at a job, if it needs one."""
        envelope = pending.envelope
        record, job = envelope.record, envelope.job
        origin = record.origin
        request_hash = self.request_hash(envelope.body)
        token = f"{self._run}-{next(self._numbers)}"
        attempt = Attempt(self.call_id(envelope), job.tenant, request_hash, origin, token, redrives(record.headers))
        match await self.ledger.claim(attempt):
            case Claim() as claim:
                return await self._pay(pending, claim, call)
            case Stored(published=True, origin=first) if first == origin:  # a crash came between result and snapshot
                pending.tell(JobState.COMPLETED, "answered and published before")  # "running" is not the last word
                return Dropped()
            case Stored(result=stored):
                return self.decode(stored)
            case GivenUp(failure) if failure.error_type == Cancelled.__name__:
                raise Cancelled(failure.message)
            case GivenUp(failure):
                pending.failures = failure.attempts
                raise (Poison if failure.error_class == "poison" else GaveUp)(failure.message)
            case Held():
                raise Unavailable("another call for this job is in flight", retry_after_s=HELD_RETRY_S)
            case Conflict(state):
                told = JobState.CANCELLED if pending.cancelled is not None and state == "given_up" else _STATES[state]
                pending.tell(told, "another request under this id was refused")  # as above
                raise Refused(
                    f"job_id {job.job_id!r} belongs to another request, which goes on; submit this one under another"
                )

    async def _pay(self, pending: Pending[X], claim: Claim, call: Callable[[], Awaitable[E]]) -> E:
        pending.failures = claim.failures
        await self._end_what_has_no_right_to_a_call(pending, claim)
        try:
            answer = await call()
            encoded, usage = answer.encode(), self.usage(answer)
        except (Unavailable, Fatal):
            await self.ledger.release(claim, failed=False)
            raise
        except Retryable as error:
            if claim.failures + 1 >= self.attempts:
                await self._give_up(claim, error)
            else:
                await self.ledger.release(claim, failed=True)
            raise
        except Exception as error:
            await self._give_up(claim, error)
            raise
        if not await self.ledger.commit(claim, encoded, usage):
            raise Unavailable(TAKEN_OVER)
        return answer

    async def _end_what_has_no_right_to_a_call(self, pending: Pending[X], claim: Claim) -> None:
        tenant = pending.envelope.job.tenant
        if claim.ambiguous:
            AMBIGUOUS.labels(TENANTS.label(tenant)).inc()
            choice = self.ambiguity.of(tenant)
            log.warning("ambiguous job", job_id=claim.job_id, tenant=tenant, then=choice)
            pending.tell(JobState.RUNNING, f"ambiguous: a crash interrupted its call, which may be billed ({choice})")
            if choice == "dead_letter":
                interrupted = GaveUp("a crash interrupted its call, which may have been billed")
                await self._give_up(claim, interrupted)
                raise interrupted
        if claim.failures >= self.attempts:
            exhausted = GaveUp(f"all {self.attempts} attempts had failed before a restart")
            await self._give_up(claim, exhausted)
            raise exhausted

    async def _give_up(self, claim: Claim, error: Exception) -> None:
        """Record the end. Raises Unavailable if the job is not this process's any more, and so not its to end."""
        retryable = isinstance(error, Retryable | GaveUp)
        failure = Failure(
            "retryable" if retryable else "poison",
            type(error).__name__,
            str(error) if isinstance(error, HeadraceError) else type(error).__name__,
            claim.failures + (not isinstance(error, GaveUp)),
        )
        if not await self.ledger.give_up(claim, failure):
            raise Unavailable(TAKEN_OVER)
