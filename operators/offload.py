"""Slow calls beside the dataflow: the one operator that waits for models, parsers, indexes and networks.

Guarantee: every message that enters leaves once, as a result or as a dead letter, or as cancelled, across crashes and
restarts. A call
in flight at a crash is made again, unless an `around` knows better (`operators.paid_once`). Nothing waits for ever,
except for a dependency that is out.

* Bounded: at most `capacity` calls in flight. With `backlog` more messages waiting, the flow's sources are told to read
  no further, which shows as consumer lag; what is on its way by then is still taken in, up to OVERSHOOT messages, then
  `on_batch` blocks. (In a cluster up to CLUSTER_OVERSHOOT: one process that blocks halts the epochs of all.)
* In flight is state: each snapshot holds the pending messages and their failed attempts, so that a restart neither
  forgets a message nor gives it new attempts. (A crash forgets what failed since the last snapshot.)
* Timeout per attempt, deadline per job; a call that runs into either is cancelled.
* A job that somebody cancels (`connectors.cancellations`) ends where it is: waiting, in backoff, or in its call, whose
  connection closes. What leaves is its last status, and the settlement of what its calls have cost. An `around` is
  asked first, since it may know of a result; with `keep_key_order` a message has its turn first.
* Retry with exponential backoff and full jitter; `Retry-After` is a lower bound. A message waiting for its next attempt
  occupies no capacity. Poison is not retried; Fatal stops the flow. `schemas.errors` has the classes, and each port
  says which status or exception is which.
* An outage is waiting: while the circuit of the step's dependency is open, nothing is called, and nothing is held
  against the message (`connectors.circuit`). Its deadline still ends it.
* Fair: who waits for capacity is served round-robin by tenant.
* Order: keys overtake each other; with `keep_key_order` the messages of one key go one at a time.
* Coalesced: with `same`, a message that asks for what is already in flight under its key makes no call of its own, and
  ends with the one that does. What its tenant's budget has reserved for it is given back.
* Executors: `work` is a coroutine of the process's event loop; one that must block awaits a thread, or a process that
  can be killed (`connectors.executors`).
* Stop: a wish to stop ends the wait for capacity, gives pending calls until its deadline, and leaves the rest in the
  snapshot. A natural end of input waits for every call.

State: the pending messages, in lanes. A lane is one key of the underlying stateful operator, so that lanes spread over
workers and an idle one costs nothing. Dead letters: poison at once, retryable after the last attempt or the deadline.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Condition
from time import monotonic, time
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, get_args
from weakref import WeakSet
from zlib import crc32

import bytewax.operators as op
import structlog
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from prometheus_client import Counter, Gauge
from pydantic import TypeAdapter, ValidationError

from connectors.circuit import Circuit, Permit
from connectors.histogram import BUCKETS_S, Histogram
from connectors.tracing.port import CURRENT, Attribute, Span, new_span_id
from operators.envelope import Envelope, Job
from operators.fair_slots import FairSlots
from operators.outcome import Outcome, bury, flow_step, sort_out
from operators.runtime import Runtime
from operators.traced import caused, record_said, settled, trace_within
from operators.write import write
from schemas.dead_letter import DeadLetter
from schemas.errors import Bill, Fatal, GaveUp, HeadraceError, Isolated, Poison, Retryable, Unavailable
from schemas.event import Event, derive_id, utc_now
from schemas.jobs import JobState, StatusChanged
from schemas.usage import nothing_used

X = TypeVar("X")
Y = TypeVar("Y")

Work = Callable[[Envelope[X]], Awaitable[Y]]
"""One call: awaited on the process's event loop, cancelled on timeout. Raises Retryable, Poison or Fatal."""

AttemptEnd = Literal["ok", "retryable", "unavailable", "poison", "fatal", "cancelled", "deadline"]

IN_FLIGHT = Gauge("headrace_offload_in_flight", "Calls that are being made.", ["step"])
WAITING = Gauge(
    "headrace_offload_waiting",
    "Messages that the step has taken in and that no call is being made for: they wait for a slot, for a dependency "
    "that is out, for their next attempt, or for the answer to the same request.",
    ["step"],
)
CAPACITY = Gauge("headrace_offload_capacity", "Calls in flight at most, in this process.", ["step"])
ATTEMPTS = Counter(
    "headrace_attempts_total",
    "Calls by what they ended with: ok retryable unavailable poison fatal cancelled deadline; and messages that were "
    "put off or ended without one. An answer from the ledger is none.",
    ["step", "outcome"],
)
CALL_SECONDS = Histogram("headrace_call_seconds", "Of each call, however it ended.", ["step"], buckets=BUCKETS_S)
DISPATCHED_TO_STORED = Histogram(
    "headrace_dispatched_to_stored_seconds",
    "From a message's first call until what became of it was settled: for paid calls, until it was in the ledger.",
    ["step"],
    buckets=BUCKETS_S,
)
STATE_SECONDS = Histogram(
    "headrace_state_seconds",
    "How long a message was in a state, each time: waiting (for a slot, or for a dependency that is out), running (in "
    "a call), retrying (in backoff); held (by its tenant's budget or for a review, since the flow took it up).",
    ["step", "state"],
    buckets=BUCKETS_S,
)

DOUBLINGS = 30  # of a backoff: more mean nothing, and a thousand are no float any more
OVERSHOOT = 512  # what sources have handed on before they see the pressure: 64 records of each of 8 partitions
CLUSTER_OVERSHOOT = 16_384  # in a cluster, whose sources hear of it by a message: more than they read meanwhile
LANES = 16  # more than a flow has workers; each busy lane costs one wake-up per POLL
POLL = timedelta(milliseconds=10)  # how soon a lane looks for results; doubled while there are none ...
POLL_CAP = timedelta(milliseconds=50)  # ... to what is little for a call of seconds, and a fifth of the wake-ups


@dataclass(frozen=True)
class OffloadPolicy:
    """How much at once, for how long, how often."""

    capacity: int = 64  # calls in flight per process
    backlog: int = 64  # messages waiting besides, so that a slot never idles until the next batch arrives
    dependency: str | None = None  # whose circuit guards the calls; without one, every failure counts
    timeout_s: float = 60.0  # per attempt
    attempts: int = 5  # in all; with the backoff below they span about half a minute
    backoff_base_s: float = 0.5  # the first wait is drawn from 0 to this
    backoff_cap_s: float = 30.0  # no wait is drawn from beyond this
    keep_key_order: bool = False  # messages of one key one at a time, in order
    cancellable: bool = True  # False: what was begun has to be finished, and a crash may have begun it
    silent: bool = False  # emits no statuses: for work on jobs that have ended already


class DeadlineExceeded(Poison):
    """The job's own deadline passed: the answer is of no use any more."""


class Cancelled(HeadraceError):
    """Somebody has cancelled the job; the message says why."""


def backoff_s(policy: OffloadPolicy, failures: int, *, retry_after_s: float | None = None) -> float:
    """Seconds to wait after the n-th failure: uniform in [0, min(cap, base * 2^(n-1))], at least what was asked for.

    "Full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(policy.backoff_cap_s, policy.backoff_base_s * 2 ** min(failures - 1, DOUBLINGS))
    return max(random.uniform(0.0, ceiling), retry_after_s or 0.0)  # noqa: S311  # spreads load, protects no secret


@dataclass
class Ready:
    """Something to emit, if it is not Dropped; the message that it settles, if it settles one."""

    key: str
    item: object  # Envelope[Y] | DeadLetter | OutgoingRecord | Dropped | Fatal
    settles: int | None = None
    taken: bool = False  # the flow has it


@dataclass
class Pending(Generic[X]):
    """A message taken in and not yet settled."""

    number: int  # within its lane
    key: str
    envelope: Envelope[X]
    failures: int = 0  # failed attempts so far; `around` may know better
    first_failed_at: datetime | None = None
    identity: str | None = None  # with `same`: what it asks for
    followers: list[int] = field(default_factory=list)  # numbers of those that ask for the same, and end with it
    plain: object = None  # the envelope as snapshots hold it, made once: each call of a minute is in sixty of them
    settled: bool = False  # its outcome is ready; guarded by the step's lock, as `followers` is
    called_at: float | None = None  # its first call in this process, on the clock of `monotonic`
    tell: Callable[[JobState, str], None] = lambda _state, _detail: None  # emits a status of the job; for `around`
    cancelled: str | None = None  # why, if its job is; known before its call is cut off
    cut_off: Callable[[], None] | None = None  # ends what is waited for now
    say: Callable[[Event], Ready] = lambda event: Ready("", event)  # emits what is to be known while a call goes on

    def cancel(self, reason: str) -> None:
        """Its job is not wanted any more."""
        self.cancelled = reason
        if self.cut_off is not None:
            self.cut_off()

    def charge(self, bill: Bill) -> None:
        """Add what a call has cost whose answer was refused; its settlement, or its dead letter's, says so."""
        job = self.envelope.job
        self.envelope = replace(self.envelope, job=replace(job, billed=bill.plus(job.billed)))
        self.plain = None


@dataclass(frozen=True)
class Dropped:
    """What `around` returns for a message that needs neither a result nor a dead letter: its job has ended already."""


Around = Callable[[Pending[X], Callable[[], Awaitable[Y]]], Awaitable[Y | Dropped]]
"""Runs before and after each attempt, which it makes, or does not make, by its second argument. It raises what `work`
does. The attempt's timeout holds for the call alone."""


@dataclass(frozen=True)
class Aloud(Generic[X, Y]):
    """Work that says something while it is at it, by `Pending.say`: the text of an answer, as it is written."""

    work: Callable[[Pending[X]], Awaitable[Y]]


class _while_wanted:  # noqa: N801  # reads as what it does; a class, since one of a generator costs each call more
    """Raises DeadlineExceeded when the job's deadline passes inside, and Cancelled when somebody cancels it."""

    def __init__(self, pending: Pending[Any]) -> None:
        self._pending = pending
        self._timeout: asyncio.Timeout | None = None
        self._task: asyncio.Task[Any] | None = None  # once it is cancelled from here
        self._before = 0  # requests to cancel it that came from elsewhere

    async def __aenter__(self) -> None:
        pending = self._pending
        if pending.cancelled is not None:
            raise Cancelled(pending.cancelled)
        deadline = pending.envelope.job.deadline
        if deadline is not None:
            left_s = (deadline - utc_now()).total_seconds()
            if left_s <= 0:
                raise _deadline_exceeded(pending.envelope.job)
            self._timeout = asyncio.timeout(left_s)
            await self._timeout.__aenter__()
        task = asyncio.current_task()
        pending.cut_off = lambda: self._cut_off(task)

    def _cut_off(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            self._task, self._before = task, task.cancelling()
            task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pending.cut_off = None
        if self._timeout is not None:
            try:
                await self._timeout.__aexit__(kind, error, at)
            except TimeoutError as passed:
                raise _deadline_exceeded(self._pending.envelope.job) from passed
        # As asyncio.Timeout does: whoever else has cancelled the task still gets what he wants.
        if (
            self._task is not None
            and self._task.uncancel() <= self._before
            and isinstance(error, asyncio.CancelledError)
        ):
            raise Cancelled(self._pending.cancelled or "") from error


def _deadline_exceeded(job: Job, last: Exception | None = None) -> DeadlineExceeded:
    passed = "" if job.deadline is None else f" {job.deadline.isoformat()}"
    failure = "" if last is None else f" (the last attempt failed: {last})"
    return DeadlineExceeded(f"the job's deadline{passed} has passed; submit it again with a later one{failure}")


class _Turn:
    """A slot, and leave from the circuit, for one call."""

    def __init__(self, slots: FairSlots, circuit: Circuit | None) -> None:
        self._slots = slots
        self._circuit = circuit
        self._holds_slot = False
        self.called = False
        self.permit: Permit | None = None

    async def wait(self, job: Job) -> None:
        """Wait for both; `end` it however this ends."""
        await self._slots.acquire(job.tenant)
        self._holds_slot = True
        if self._circuit is not None:
            self.permit = self._circuit.permit(job.job_id)
            await self.permit.wait()

    def end(self) -> None:
        """Hand both on; may be repeated."""
        if self.permit is not None:
            self.permit.end()
        if self._holds_slot:
            self._holds_slot = False
            self._slots.release()


class _Step(Generic[X, Y]):
    """What the lanes of one step share in a process: the work, the bound, and the codec of their snapshots."""

    def __init__(
        self,
        name: str,
        work: Work[X, Y] | Aloud[X, Y],
        body: type[X],
        policy: OffloadPolicy,
        runtime: Runtime,
        around: Around[X, Y] | None,
        same: Callable[[Envelope[X]], str] | None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.runtime = runtime
        self.same = same
        self.codec: TypeAdapter[Envelope[X]] = TypeAdapter(Envelope[body])  # type: ignore[valid-type]  # made at run time
        self.settled = Condition()
        self._work = work
        self._around = around
        self._unsettled = 0
        self._overshoot = OVERSHOOT if runtime.cluster.is_alone else CLUSTER_OVERSHOOT
        self._slots = FairSlots(policy.capacity)
        self._circuit = None if policy.dependency is None else runtime.circuits.of(policy.dependency)
        self._calls = 0  # being made
        self._attempts: dict[AttemptEnd, Counter] = {end: ATTEMPTS.labels(name, end) for end in get_args(AttemptEnd)}
        self._call_s = CALL_SECONDS.labels(name)
        self._stored_s = DISPATCHED_TO_STORED.labels(name)
        self._waiting_s = STATE_SECONDS.labels(name, "waiting")
        STATE_SECONDS.share(self._call_s, name, "running")
        self._retrying_s = STATE_SECONDS.labels(name, "retrying")
        _show(self)

    @property
    def calls(self) -> int:
        """Being made."""
        return self._calls

    @property
    def waiting(self) -> int:
        """Messages that no call is being made for."""
        return max(self._unsettled - self._calls, 0)

    def enter(self, before_waiting: Callable[[], None] | None) -> None:
        """Count one more message; blocks far beyond the bound, if it may, unless the flow is to stop."""
        bound = self.policy.capacity + self.policy.backlog
        with self.settled:
            if before_waiting is not None and self._unsettled >= bound + self._overshoot:
                before_waiting()
                while self._unsettled >= bound + self._overshoot and not self.runtime.stop.requested:
                    self.runtime.progress.waits()  # for calls, and those end
                    self.settled.wait(0.1)  # a wish to stop does not notify: look for it ten times a second
            self._unsettled += 1
            if self._unsettled >= bound:
                self.runtime.pressure.rise(self.name)

    def join(self, pending: Pending[X], leader: Pending[X]) -> None:
        """Count a message that ends with another one; never blocks, since it costs no call."""
        with self.settled:
            leader.followers.append(pending.number)
            if not leader.settled:
                self._unsettled += 1

    def leave(self, pending: Pending[X]) -> None:
        """Count a message less, with those that end with it, and wake whoever waits."""
        with self.settled:
            pending.settled = True
            self._unsettled -= 1 + len(pending.followers)
            if self._unsettled < self.policy.capacity + self.policy.backlog:
                self.runtime.pressure.fall(self.name)
            self.settled.notify_all()

    def status(self, pending: Pending[X], state: JobState, *, attempt: int, detail: str | None = None) -> StatusChanged:
        job = pending.envelope.job
        return StatusChanged(
            job_id=job.job_id,
            tenant=job.tenant,
            document_id=job.document_id,
            state=state,
            step=self.name,
            attempt=attempt,
            detail=detail,
        )

    def said(self, pending: Pending[X], event: Event) -> object:
        """The record of what a message has caused so far, unless nobody is to hear of it."""
        if self.policy.silent and isinstance(event, StatusChanged):
            return Dropped()
        return caused(event, pending.envelope, step=self.name, tracer=self.runtime.tracer)

    def left(self, pending: Pending[X], outcome: str) -> None:
        """The message leaves the flow here, without a result or a dead letter: its span ends."""
        settled(pending.envelope, step=self.name, outcome=outcome, tracer=self.runtime.tracer)

    async def settle(self, pending: Pending[X], emit: Callable[[Ready], None]) -> None:
        """Emit what becomes of a message, in the end."""
        job, loop = pending.envelope.job, asyncio.get_running_loop()
        trace = trace_within(pending.envelope, self.name, self.runtime.tracer)
        CURRENT.set(trace)  # of this task alone
        structlog.contextvars.bind_contextvars(
            job_id=job.job_id, tenant=job.tenant, step=self.name, trace_id=trace.trace_id
        )

        def told(reason: str) -> None:
            loop.call_soon_threadsafe(pending.cancel, reason)

        if self.policy.cancellable:
            pending.cancelled = self.runtime.cancellations.watch(job.tenant, job.job_id, told)
        try:
            item = await self._end_of(pending, emit)
        finally:
            self.runtime.cancellations.unwatch(job.tenant, job.job_id, told)
        if pending.called_at is not None:
            self._stored_s.observe(monotonic() - pending.called_at)
        emit(Ready(pending.key, item, settles=pending.number))
        self.leave(pending)

    async def _end_of(  # noqa: C901  # a branch per class
        self, pending: Pending[X], emit: Callable[[Ready], None]
    ) -> Envelope[Y] | DeadLetter | Dropped | Fatal:
        """Try until there is a result or a dead letter, or nobody wants either."""

        def tell(state: JobState, detail: str) -> None:
            say(self.status(pending, state, attempt=pending.failures + 1, detail=detail))

        def say(event: Event) -> Ready:
            ready = Ready(pending.key, self.said(pending, event))
            emit(ready)
            return ready

        pending.tell, pending.say = tell, say
        waits = 0
        wait_s = 0.0
        failure: Retryable
        while True:
            try:
                result = await self._attempt(pending, wait_s)
            except Unavailable as error:  # nothing was attempted: wait, and say so once
                if waits == 0:
                    tell(JobState.RETRYING, f"waiting: {error}")
                waits += 1
                wait_s, failure = backoff_s(self.policy, waits, retry_after_s=error.retry_after_s), error
            except Retryable as error:
                pending.failures += 1
                pending.first_failed_at = pending.first_failed_at or utc_now()
                if pending.failures >= self.policy.attempts:
                    return self._bury(pending, error)
                wait_s, failure = backoff_s(self.policy, pending.failures, retry_after_s=error.retry_after_s), error
                next_attempt = f"attempt {pending.failures + 1} of {self.policy.attempts}"
                tell(JobState.RETRYING, f"{next_attempt} in {wait_s:.1f} s: {error}")
            except Fatal as error:
                return error
            except Cancelled as error:
                return self._cancelled(pending, str(error))
            except Exception as error:  # noqa: BLE001  # one message failed; any exception in an operator ends the flow
                if not isinstance(error, GaveUp):
                    pending.failures += 1
                return self._bury(pending, error)
            else:
                return result if isinstance(result, Dropped) else pending.envelope.carrying(result)
            if self._too_late(pending.envelope, wait_s):
                return self._bury(pending, _deadline_exceeded(pending.envelope.job, failure))

    async def _attempt(self, pending: Pending[X], wait_s: float) -> Y | Dropped:
        turn = _Turn(self._slots, self._circuit)
        try:
            await self._wait(pending, wait_s, turn)
            call = partial(self._call, pending, turn)
            result = await (call() if self._around is None else self._around(pending, call))
        except Exception as error:
            end = _end_with(error)
            if turn.called or end in _ENDS_WITHOUT_CALL:
                self._attempts[end].inc()
            raise
        finally:
            turn.end()
        if turn.called:
            self._attempts["ok"].inc()
        return result

    async def _wait(self, pending: Pending[X], wait_s: float, turn: "_Turn") -> None:
        """Until the next attempt. One that is cancelled needs no slot: its call raises Cancelled, if it is made."""
        if pending.cancelled is not None:  # and `around` cannot tell yet
            await asyncio.sleep(wait_s)
            return
        with suppress(Cancelled):
            async with _while_wanted(pending):
                if wait_s:
                    began = monotonic()
                    try:
                        await asyncio.sleep(wait_s)
                    finally:
                        self._retrying_s.observe(monotonic() - began)
                began = monotonic()
                try:
                    await turn.wait(pending.envelope.job)
                finally:
                    self._waiting_s.observe(monotonic() - began)

    async def _call(self, pending: Pending[X], turn: "_Turn") -> Y:
        """One call under its limits; what becomes of it is told to the circuit. Then its slot is free again."""
        try:
            return await self._told(pending, turn)
        finally:
            turn.end()

    async def _told(self, pending: Pending[X], turn: "_Turn") -> Y:
        permit = turn.permit
        try:
            async with _while_wanted(pending):
                turn.called = True
                result = await self._timed(pending)
        except (DeadlineExceeded, Isolated):  # say nothing about the dependency
            raise
        except Retryable as error:
            if permit is None or permit.failed(error):
                raise
            raise Unavailable(str(error), retry_after_s=error.retry_after_s) from error
        except Poison:
            if permit is not None:
                permit.succeeded()
            raise
        if permit is not None:
            permit.succeeded()
        return result

    async def _timed(self, pending: Pending[X]) -> Y:
        began = monotonic()
        if pending.called_at is None:
            pending.called_at = began
        self._calls += 1
        try:
            return await self._traced(pending)
        finally:
            self._calls -= 1
            self._call_s.observe(monotonic() - began)

    async def _traced(self, pending: Pending[X]) -> Y:
        """One call, as a span below its message's; what it sends out itself is below that."""
        tracer, above = self.runtime.tracer, CURRENT.get()
        if not tracer.on or above is None or not above.sampled:
            return await self._charged(pending)
        own, began_at, failed = above.child(new_span_id()), time(), None
        reset = CURRENT.set(own)
        try:
            return await self._charged(pending)
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            CURRENT.reset(reset)
            job = pending.envelope.job
            said: dict[str, Attribute] = {
                "headrace.job_id": job.job_id,
                "headrace.tenant": job.tenant,
                "headrace.step": self.name,
                "headrace.attempt": pending.failures + 1,
            }
            tracer.record(Span(self.name, own, above.span_id, began_at, time(), attributes=said, failed=failed))

    async def _charged(self, pending: Pending[X]) -> Y:
        try:
            return await self._within_timeout(pending)
        except HeadraceError as error:
            if error.bill is not None:
                pending.charge(error.bill)
            raise

    async def _within_timeout(self, pending: Pending[X]) -> Y:
        try:
            async with asyncio.timeout(self.policy.timeout_s) as timeout:
                if isinstance(self._work, Aloud):
                    return await self._work.work(pending)
                return await self._work(pending.envelope)
        except TimeoutError as error:
            limit = f" within {self.policy.timeout_s:.1f} s" if timeout.expired() else ": it timed out"
            raise Retryable(f"no answer{limit}") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # by the deadline, or because the process ends
                raise
            raise Retryable("the call was cancelled from within") from error

    def _cancelled(self, pending: Pending[X], reason: str) -> Dropped:
        """Settle what was reserved for the job, and say that it ends here."""
        job = pending.envelope.job
        if job.admission_id is not None:
            used = nothing_used(job.job_id, job.tenant, job.root, job.admission_id)
            pending.say(used if job.billed is None else used.model_copy(update=asdict(job.billed)))
        status = self.status(pending, JobState.CANCELLED, attempt=pending.failures + 1, detail=reason)
        if job.callback_url is not None:  # the same end, however often the job comes again
            end_id = derive_id("cancelled", job.tenant, job.job_id)
            status = status.model_copy(update={"callback_url": job.callback_url, "end_id": end_id})
        pending.say(status)
        return Dropped()

    @staticmethod
    def _too_late(envelope: Envelope[X], wait_s: float) -> bool:
        deadline = envelope.job.deadline
        return deadline is not None and utc_now() + timedelta(seconds=wait_s) >= deadline

    def _bury(self, pending: Pending[X], error: Exception) -> DeadLetter:
        return bury(
            pending.envelope.job,
            pending.envelope.record,
            error,
            step=self.name,
            attempts=max(pending.failures, 1),
            first_failed_at=pending.first_failed_at,
            received_at=pending.envelope.received_at,
        )


_ENDS_WITHOUT_CALL: frozenset[AttemptEnd] = frozenset({"unavailable", "cancelled", "deadline", "fatal"})


def _end_with(error: Exception) -> AttemptEnd:
    match error:
        case Unavailable():
            return "unavailable"
        case Retryable():
            return "retryable"
        case Fatal():
            return "fatal"
        case Cancelled():
            return "cancelled"
        case DeadlineExceeded():
            return "deadline"
        case _:
            return "poison"


_shown: dict[str, WeakSet[_Step[Any, Any]]] = {}  # by name; a step of the flow file may offload more than once


def _show(step: _Step[Any, Any]) -> None:
    """Let metrics look at a step whenever they are asked for, which costs its calls nothing; as long as it is there."""
    steps = _shown.setdefault(step.name, WeakSet())
    steps.add(step)
    IN_FLIGHT.labels(step.name).set_function(lambda: sum(each.calls for each in list(steps)))
    WAITING.labels(step.name).set_function(lambda: sum(each.waiting for each in list(steps)))
    CAPACITY.labels(step.name).set_function(lambda: sum(each.policy.capacity for each in list(steps)))


_Snapshot = tuple[int, list[tuple[str, Any, int, datetime | None]]]
SNAPSHOT_VERSION = 1


class _Lane(StatefulBatchLogic[tuple[str, Envelope[X]], tuple[str, object], _Snapshot], Generic[X, Y]):
    """One lane: hands messages to the loop, collects what is ready, remembers what is pending."""

    def __init__(self, step: _Step[X, Y], resume: _Snapshot | None) -> None:
        self._step = step
        self._ready: deque[Ready] = deque()  # appended to by the loop's thread, emptied by the worker's
        self._pending: dict[int, Pending[X]] = {}  # by number: in order of arrival
        self._queues: dict[
            str, deque[Pending[X]]
        ] = {}  # with keep_key_order: of each key, the first one is being worked on
        self._leaders: dict[str, Pending[X]] = {}  # with `same`: those that call, by what they ask for
        self._numbers = 0
        self._due: list[Pending[X]] = []  # to be started together
        self._poll = POLL
        self._poll_at = datetime.now(UTC) + POLL  # at once after a restart: no new message need ever come to this lane
        for key, plain, failures, first_failed_at in self._restore(resume):
            self._take(key, plain, failures, first_failed_at, wait=False)
        self._start_due()

    def _restore(self, resume: _Snapshot | None) -> Iterable[tuple[str, Envelope[X], int, datetime | None]]:
        if resume is None:
            return
        version, items = resume
        if version != SNAPSHOT_VERSION:
            raise Fatal(
                f"{self._step.name}: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it"
            )
        for key, plain, failures, first_failed_at in items:
            try:
                yield key, self._step.codec.validate_python(plain), failures, first_failed_at
            except ValidationError as error:
                fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False))
                raise Fatal(
                    f"{self._step.name}: a pending message of the snapshot does not fit this release ({fields}); "
                    "drain the flow with the release that wrote it"
                ) from error

    def _take(
        self, key: str, envelope: Envelope[X], failures: int = 0, first_failed_at: datetime | None = None, *, wait: bool
    ) -> Pending[X]:
        self._numbers += 1
        pending = Pending(self._numbers, key, envelope, failures, first_failed_at)
        self._pending[pending.number] = pending
        if self._step.same is not None:
            pending.identity = f"{len(key)}:{key}{self._step.same(envelope)}"
            leader = self._leaders.setdefault(pending.identity, pending)
            if leader is not pending:
                self._step.join(pending, leader)
                return pending
        self._step.enter(self._start_due if wait else None)  # what waits to be started is what would make room
        if self._step.policy.keep_key_order:
            queue = self._queues.setdefault(key, deque())
            queue.append(pending)
            if len(queue) > 1:
                return pending
        self._due.append(pending)
        return pending

    def _start_due(self) -> None:
        if self._due:
            works = [self._step.settle(pending, self._ready.append) for pending in self._due]
            self._step.runtime.loop.start(works, self._stop_if_unsettled)
            self._due = []

    def _stop_if_unsettled(self, task: asyncio.Task[None]) -> None:
        """A call that ended neither way would be waited for in silence and for ever: stop the flow instead."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._ready.append(Ready("", Fatal(f"{self._step.name}: a call ended with {type(error).__name__}")))

    def _collect(self) -> list[tuple[str, object]]:
        """Everything that is ready. Raises Fatal if a call did."""
        emitted: list[tuple[str, object]] = []
        while self._ready:
            ready = self._ready.popleft()
            ready.taken = True
            if isinstance(ready.item, Fatal):
                self._step.runtime.raised.append(ready.item)
                raise ready.item
            if not isinstance(ready.item, Dropped):
                emitted.append((ready.key, ready.item))
            if ready.settles is not None:
                pending = self._pending.pop(ready.settles)
                if isinstance(ready.item, Dropped):
                    self._step.left(pending, "dropped" if pending.cancelled is None else "cancelled")
                emitted += self._settle(pending)
        self._start_due()
        return emitted

    def _settle(self, pending: Pending[X]) -> Iterator[tuple[str, object]]:
        for number in pending.followers:
            follower = self._pending.pop(number)
            self._step.left(follower, "coalesced")
            job = follower.envelope.job
            if job.admission_id is not None and job.admission_id != pending.envelope.job.admission_id:
                # Its own, for a call that is not made.
                unused = nothing_used(job.job_id, job.tenant, job.root, job.admission_id)
                yield follower.key, self._step.said(follower, unused)
        if pending.identity is not None:
            del self._leaders[pending.identity]
        self._start_next(pending.key)

    def _start_next(self, key: str) -> None:
        queue = self._queues.get(key)
        if queue is None:
            return
        queue.popleft()
        if queue:
            self._due.append(queue[0])
        else:
            del self._queues[key]

    def _emit(self, emitted: list[tuple[str, object]]) -> tuple[list[tuple[str, object]], bool]:
        self._poll = POLL if emitted else min(self._poll * 2, POLL_CAP)
        self._poll_at = datetime.now(UTC) + self._poll
        return emitted, not self._pending

    def on_batch(self, values: list[tuple[str, Envelope[X]]]) -> tuple[list[tuple[str, object]], bool]:
        emitted: list[tuple[str, object]] = []
        for key, envelope in values:
            pending = self._take(key, envelope, wait=True)
            leads = pending.identity is None or self._leaders[pending.identity] is pending
            detail = None if leads else "the same request is being worked on already: this one ends with it"
            if not self._step.policy.silent:
                running = self._step.status(pending, JobState.RUNNING, attempt=1, detail=detail)
                emitted.append((key, self._step.said(pending, running)))
        return self._emit(emitted + self._collect())

    def on_notify(self) -> tuple[list[tuple[str, object]], bool]:
        return self._emit(self._collect())

    def on_eof(self) -> tuple[list[tuple[str, object]], bool]:
        stop = self._step.runtime.stop
        emitted = self._collect()
        while self._pending:
            deadline = stop.deadline
            if stop.requested and deadline is not None and monotonic() >= deadline:
                break
            with self._step.settled:
                self._step.settled.wait_for(lambda: bool(self._ready), timeout=0.1)
            emitted += self._collect()
        return self._emit(emitted)

    def notify_at(self) -> datetime | None:
        return self._poll_at if self._pending else None

    def snapshot(self) -> _Snapshot:
        return SNAPSHOT_VERSION, [
            (item.key, self._plain(item), item.failures, item.first_failed_at) for item in self._pending.values()
        ]

    def _plain(self, pending: Pending[X]) -> object:
        if pending.plain is None:
            pending.plain = self._step.codec.dump_python(pending.envelope)
        return pending.plain


def _lane(keyed: tuple[str, Envelope[X]]) -> str:
    return f"lane-{crc32(keyed[0].encode()) % LANES:02d}"


@operator
def offload(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    work: Work[X, Y] | Aloud[X, Y],
    *,
    body: type[X],
    policy: OffloadPolicy,
    runtime: Runtime,
    around: Around[X, Y] | None = None,
    same: Callable[[Envelope[X]], str] | None = None,
) -> Outcome[Y]:
    """Call `work` for each message; see the module's docstring for what is guaranteed.

    `body` is the class of the bodies that come in: a pydantic model or a dataclass of plain values, since pending ones
    are part of the recovery state. `same` tells what a message asks for, so that equal requests of one key are
    coalesced; it is not for steps that keep the order of a key. Each message's status is emitted here: running, and
    retrying before every retry.
    """
    if same is not None and policy.keep_key_order:
        raise ValueError(f"{step_id}: what is coalesced overtakes what keeps its order; choose one of them")
    step = _Step(flow_step(step_id), work, body, policy, runtime, around, same)

    lanes = op.key_on("lane", up, _lane)
    worked = op.key_rm("unlane", op.stateful_batch("work", lanes, lambda resume: _Lane(step, resume)))
    outcome, said = sort_out(worked)
    write("statuses", op.filter_map_value("status", said, record_said), runtime)
    return outcome
