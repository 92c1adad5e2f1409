"""What a tenant may use: every call is reserved before it is made, and settled after.

Guarantee: that of `operators.account`, across crashes and restarts: in no window more is used than its limit, if no
call uses more than `cost` said. Settlements come back through usage.tokens, as an input of the same flow; changes of a
budget come through budgets.config, and hold from the next request on.

A request that is cancelled passes, without a reservation: `infer` ends it.

Over budget, by the tenant's policy: `reject` is a dead letter that says why and when to come back; `defer` holds the
request back, in order of arrival, until there is room or its deadline has passed; `alert` lets it through and says so.

Of two budgets of a tenant the one that was decided later holds, in whatever order they are read: a start reads the
newest before the flow reads the former ones again.

State, per tenant: its account, its budget, and what it has deferred. Dead letters: rejected requests; more deferred
ones than `max_deferred`; a budget in money where no prices are known (the former budget stays).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

import bytewax.operators as op
import structlog
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from prometheus_client import Counter
from pydantic import TypeAdapter, ValidationError

from connectors.cancellations import Cancellations, Lookout
from connectors.histogram import Observations
from connectors.kafka.record import OutgoingRecord, Record
from connectors.metric_labels import TENANTS
from connectors.tracing.port import Tracer
from operators.account import Account, AccountSnapshot, Cost, Over
from operators.envelope import Envelope, Job
from operators.offload import STATE_SECONDS, DeadlineExceeded
from operators.outcome import Outcome, bury, flow_step, sort_out
from operators.runtime import Runtime
from operators.traced import caused, record_said, trace_within
from operators.write import write
from schemas.budgets import Budget, BudgetChanged
from schemas.errors import Fatal, GaveUp, Poison, Refused
from schemas.event import at_unix, derive_id, utc_now
from schemas.jobs import JobState, StatusChanged
from schemas.prices import Prices
from schemas.usage import TokensUsed

X = TypeVar("X")

log = structlog.get_logger()

OVER = Counter("headrace_over_budget_total", "Requests that found their tenant's budget used up", ["tenant", "policy"])
UNRESERVED = Counter(
    "headrace_usage_unreserved_total",
    "Settlements of what had not been reserved; a replay makes some",
    ["tenant"],
)
OVERRUN = Counter("headrace_usage_overrun_total", "Calls that used more than was reserved for them", ["tenant"])

SNAPSHOT_VERSION = 1


class OverBudget(GaveUp):
    """The tenant's budget has no room: the same request may be sent again, or redriven, later."""


class NeverAffordable(Poison):
    """The request alone may need more than the whole budget."""


@dataclass(frozen=True)
class BudgetPolicy:
    """What holds where nothing else was said."""

    default: Budget = field(default_factory=Budget)  # of a tenant without one: no limit
    prices: Prices = field(default_factory=lambda: Prices({}))
    initial: Mapping[str, BudgetChanged] = field(default_factory=dict)
    """By tenant: what budgets.config held at the start, so that no request comes before its budget."""

    def refusal(self, changed: BudgetChanged) -> str | None:
        """Why this budget cannot hold."""
        if any(window.money is not None for window in changed.windows or ()) and not self.prices.by_model:
            return "the budget is in money, and no prices are known: set HEADRACE_PRICES; the former budget stays"
        return None


@dataclass(frozen=True)
class Charge(Generic[X]):
    """How bodies of one class are charged."""

    body: type[X]
    cost: Callable[[X], Cost]  # the most that its call may use
    asks: Callable[[Envelope[X]], str]  # names one call; another message that asks for the same has the same


def admission_of(asks: str, record: Record) -> str:
    """Names what one message reserves: a replay of the message has the same, another one that asks the same has not.

    Else what was settled for the first, with nothing if it was never called, would let the second call for nothing.
    """
    return f"{asks}/{derive_id('origin', record.origin)}"


_Snapshot = tuple[int, AccountSnapshot, str | None, list[tuple[str, Any]]]


@dataclass
class _Deferred(Generic[X]):
    key: str
    envelope: Envelope[X]
    asks: str
    cost: Cost
    plain: object = None  # as snapshots hold it, made once

    @property
    def admission_id(self) -> str:
        return admission_of(self.asks, self.envelope.record)


@dataclass(frozen=True)
class _Step(Generic[X]):
    """What the tenants of one step share."""

    name: str
    codec: TypeAdapter[Envelope[X]]
    charge: Charge[X]
    policy: BudgetPolicy
    clock: Callable[[], datetime]
    cancellations: Cancellations
    held_s: Observations
    tracer: Tracer

    def is_cancelled(self, job: Job) -> bool:
        return self.cancellations.of(job.tenant, job.job_id) is not None


class _Tenant(StatefulBatchLogic[tuple[str, Envelope[Any]], tuple[str, object], _Snapshot], Generic[X]):
    """One tenant's requests, settlements and changes, in the order in which they come."""

    def __init__(self, step: _Step[X], resume: _Snapshot | None) -> None:
        self._step = step
        self._changed: BudgetChanged | None = None
        self._began = False
        self._lookout = Lookout(step.cancellations)
        self._deferred: deque[_Deferred[X]] = deque()
        self._resume_at: float | None = None  # when the first of them may have room
        if resume is None:
            self._account = Account(step.policy.default, self._now())
            return
        version, account, changed, deferred = resume
        if version != SNAPSHOT_VERSION:
            raise Fatal(
                f"{step.name}: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it"
            )
        self._account = Account.restored(step.policy.default, account)
        if changed is not None:
            self._adopt_known(BudgetChanged.model_validate_json(changed))
        for key, plain in deferred:
            try:
                envelope = step.codec.validate_python(plain)
            except ValidationError as error:
                raise Fatal(
                    f"{step.name}: a deferred message of the snapshot does not fit this release; drain the flow with "
                    "the release that wrote it"
                ) from error
            asks, cost = step.charge.asks(envelope), step.charge.cost(envelope.body)
            self._deferred.append(_Deferred(key, envelope, asks, cost, plain))
        self._resume_at = self._now() if self._deferred else None

    def _now(self) -> float:
        return self._step.clock().timestamp()

    def on_batch(self, values: list[tuple[str, Envelope[Any]]]) -> tuple[list[tuple[str, object]], bool]:
        emitted: list[tuple[str, object]] = []
        now = self._now()
        for key, envelope in values:
            body = envelope.body
            if isinstance(body, TokensUsed):
                self._settle(body, now)
            elif isinstance(body, BudgetChanged):
                emitted += self._change(key, envelope, body)
            else:
                emitted += self._request(key, envelope, now)
        if self._deferred:
            emitted += self._release(now)
        return emitted, False

    def on_notify(self) -> tuple[list[tuple[str, object]], bool]:
        return list(self._release(self._now())), False

    def _settle(self, used: TokensUsed, now: float) -> None:
        money = self._step.policy.prices.money(used.model, used.prompt_tokens, used.completion_tokens)
        overrun = self._account.settle(used.admission_id, Cost(used.tokens, money), used.used_at.timestamp(), now)
        if overrun is None:
            UNRESERVED.labels(TENANTS.label(used.tenant)).inc()
            log.warning(
                "usage for which nothing was reserved", step=self._step.name, tenant=used.tenant, job_id=used.job_id
            )
        elif overrun:
            OVERRUN.labels(TENANTS.label(used.tenant)).inc()
            log.warning(
                "call used more than was reserved",
                step=self._step.name,
                tenant=used.tenant,
                job_id=used.job_id,
                tokens=used.tokens,
            )

    def _change(
        self, key: str, envelope: Envelope[BudgetChanged], changed: BudgetChanged
    ) -> Iterator[tuple[str, object]]:
        reason = self._step.policy.refusal(changed)
        if reason is not None:
            received_at = envelope.received_at
            refused = Refused(reason)
            yield key, bury(envelope.job, envelope.record, refused, step=self._step.name, received_at=received_at)
            return
        changed = changed.written(envelope.record.timestamp)
        self._begin(changed.tenant)
        if self._is_former(changed):
            return  # budgets.config keeps former versions until they are compacted, some for good
        self._adopt(changed)
        log.info("budget changed", tenant=changed.tenant, policy=changed.policy, windows=len(changed.windows or ()))

    def _begin(self, tenant: str) -> None:
        """Once, before anything else: what was known at the start holds, unless the snapshot knows better."""
        if self._began:
            return
        self._began = True
        initial = self._step.policy.initial.get(tenant)
        if initial is not None and not self._is_former(initial):
            self._adopt_known(initial)

    def _is_former(self, changed: BudgetChanged) -> bool:
        return self._changed is not None and changed.changed_at < self._changed.changed_at

    def _adopt_known(self, changed: BudgetChanged) -> None:
        """Of what was accepted once, or is known without its message; prices may be gone since."""
        reason = self._step.policy.refusal(changed)
        if reason is None:
            self._adopt(changed)
        else:
            log.warning("budget refused", tenant=changed.tenant, reason=reason)

    def _adopt(self, changed: BudgetChanged) -> None:
        self._changed = changed
        self._account.budget = changed.budget or self._step.policy.default

    def _request(self, key: str, envelope: Envelope[X], now: float) -> Iterator[tuple[str, object]]:
        self._begin(envelope.job.tenant)
        if self._step.is_cancelled(envelope.job):
            yield key, envelope
            return
        charge, policy = self._step.charge, self._account.budget.policy
        deferred = _Deferred(key, envelope, charge.asks(envelope), charge.cost(envelope.body))
        if any(_same(each, deferred) for each in self._deferred):
            yield key, self._status(deferred, JobState.DEFERRED, "a repeat of a request that is held back", None)
            return
        if self._deferred and policy == "defer":  # whoever came first goes first
            yield from self._release(now)
            if self._deferred:
                yield from self._hold_back(deferred, "others of its tenant wait already", self._resume_at, now)
                return
        over = self._account.reserve(deferred.admission_id, deferred.cost, now, force=policy == "alert")
        if over is None:
            yield self._admitted(deferred)
            return
        OVER.labels(TENANTS.label(envelope.job.tenant), policy).inc()
        if policy == "alert":
            log.warning(
                "over budget",
                step=self._step.name,
                tenant=envelope.job.tenant,
                job_id=envelope.job.job_id,
                trace_id=trace_within(envelope, self._step.name, self._step.tracer).trace_id,
                reason=over.reason(),
            )
            yield key, self._status(deferred, JobState.RUNNING, f"over budget, and let through: {over.reason()}", None)
            yield self._admitted(deferred)
        elif policy == "defer" and over.ever:
            yield from self._hold_back(deferred, over.reason(), over.resume_at, now)
        else:
            yield self._rejected(deferred, over)

    def _hold_back(
        self, deferred: _Deferred[X], why: str, resume_at: float | None, now: float
    ) -> Iterator[tuple[str, object]]:
        deadline = deferred.envelope.job.deadline
        if len(self._deferred) >= self._account.budget.max_deferred:
            full = f"over budget, and {len(self._deferred)} requests are held back already: {why}"
            yield self._buried(deferred, OverBudget(f"{full}; send it again {_when(resume_at)}"))
        elif deadline is not None and deadline.timestamp() <= max(resume_at or now, now):
            late = f"over budget, and its deadline comes before there is room: {why}"
            yield self._buried(deferred, OverBudget(f"{late}; send it again {_when(resume_at)}, with a later deadline"))
        else:
            if not self._deferred:
                self._resume_at = resume_at
            self._deferred.append(deferred)
            yield deferred.key, self._status(deferred, JobState.DEFERRED, f"held back: {why}", resume_at)

    def _release(self, now: float) -> Iterator[tuple[str, object]]:
        """Let go what has room now, in order, and what is cancelled; and bury what is too late."""
        self._lookout.looked()
        for each in [each for each in self._deferred if self._step.is_cancelled(each.envelope.job)]:
            self._deferred.remove(each)
            self._tell_held(each, now)
            yield each.key, each.envelope
        expired = [each for each in self._deferred if _is_late(each.envelope.job, now)]
        for each in expired:
            self._deferred.remove(each)
            self._tell_held(each, now)
            error = DeadlineExceeded("the job's deadline passed while its tenant's budget was used up")
            yield self._buried(each, error)
        while self._deferred:
            first = self._deferred[0]
            force = self._account.budget.policy == "alert"
            over = self._account.reserve(first.admission_id, first.cost, now, force=force)
            if over is not None and not force and over.ever:
                self._resume_at = over.resume_at
                return
            self._deferred.popleft()
            self._tell_held(first, now)
            yield self._admitted(first) if over is None or force else self._rejected(first, over)
        self._resume_at = None

    def _tell_held(self, deferred: _Deferred[X], now: float) -> None:
        self._step.held_s.observe(max(0.0, now - deferred.envelope.received_at.timestamp()))

    def _admitted(self, deferred: _Deferred[X]) -> tuple[str, object]:
        return deferred.key, deferred.envelope.admitted(deferred.admission_id)

    def _rejected(self, deferred: _Deferred[X], over: Over) -> tuple[str, object]:
        if not over.ever:
            return self._buried(deferred, NeverAffordable(f"over budget for good: {over.reason()}; ask for less"))
        return self._buried(
            deferred, OverBudget(f"over budget: {over.reason()}; send it again {_when(over.resume_at)}")
        )

    def _buried(self, deferred: _Deferred[X], error: Exception) -> tuple[str, object]:
        envelope = deferred.envelope
        received_at = envelope.received_at
        letter = bury(envelope.job, envelope.record, error, step=self._step.name, received_at=received_at)
        if any(each.startswith(f"{deferred.asks}/") for each in self._account.reserved):
            letter = letter.model_copy(update={"ends_job": False})  # the first of these messages goes on
        return deferred.key, letter

    def _status(self, deferred: _Deferred[X], state: JobState, detail: str, resume_at: float | None) -> OutgoingRecord:
        job = deferred.envelope.job
        status = StatusChanged(
            job_id=job.job_id,
            tenant=job.tenant,
            document_id=job.document_id,
            state=state,
            step=self._step.name,
            detail=detail,
            resume_at=None if resume_at is None else at_unix(resume_at),
        )
        return caused(status, deferred.envelope, step=self._step.name, tracer=self._step.tracer)

    def notify_at(self) -> datetime | None:
        look_at = self._lookout.next_at(each.envelope.record for each in self._deferred)
        if not self._deferred:
            return None
        deadlines = (each.envelope.job.deadline for each in self._deferred)
        moments = [deadline.timestamp() for deadline in deadlines if deadline is not None]
        moments.append(look_at)
        moments += [] if self._resume_at is None else [self._resume_at]
        return at_unix(min(moments))

    def snapshot(self) -> _Snapshot:
        for each in self._deferred:
            if each.plain is None:
                each.plain = self._step.codec.dump_python(each.envelope)
        changed = None if self._changed is None else self._changed.model_dump_json()
        deferred = [(each.key, each.plain) for each in self._deferred]
        return SNAPSHOT_VERSION, self._account.snapshot, changed, deferred


def _same(one: _Deferred[X], other: _Deferred[X]) -> bool:
    """Until the same time, too: what ends at one deadline must not end a message that has a later one."""
    return one.asks == other.asks and one.envelope.job.deadline == other.envelope.job.deadline


def _is_late(job: Job, now: float) -> bool:
    return job.deadline is not None and job.deadline.timestamp() <= now


def _when(moment: float | None) -> str:
    if moment is None:
        return "when calls in flight have ended"
    return f"after {at_unix(moment).isoformat(timespec='seconds')}"


_Keyed = KeyedStream[Envelope[Any]]


def _tenant(keyed: tuple[str, Envelope[Any]]) -> str:
    return keyed[1].job.tenant


def _tenant_of(step: _Step[X], resume: _Snapshot | None) -> _Tenant[X]:
    return _Tenant(step, resume)


@operator
def budget(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    used: KeyedStream[Envelope[TokensUsed]],
    changed: KeyedStream[Envelope[BudgetChanged]],
    charge: Charge[X],
    policy: BudgetPolicy,
    runtime: Runtime,
    clock: Callable[[], datetime] = utc_now,
) -> Outcome[X]:
    """Let through what its tenant can afford, as `Envelope.job.admission_id` of it.

    Whoever makes the call must say on usage.tokens what became of it, or the reservation stays.
    """
    codec: TypeAdapter[Envelope[X]] = TypeAdapter(Envelope[charge.body])  # type: ignore[name-defined]  # at run time
    name = flow_step(step_id)
    held_s = STATE_SECONDS.labels(name, "held")
    step = _Step(name, codec, charge, policy, clock, runtime.cancellations, held_s, runtime.tracer)

    merged = op.merge("all", cast("_Keyed", up), cast("_Keyed", used), cast("_Keyed", changed))
    tenants = op.key_on("tenant", merged, _tenant)
    accounted = op.key_rm("accounted", op.stateful_batch("work", tenants, lambda resume: _tenant_of(step, resume)))
    outcome, said = sort_out(accounted)
    write("statuses", op.filter_map_value("status", said, record_said), runtime)
    return outcome
