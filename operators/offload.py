"""Slow calls beside the dataflow: the one operator that waits for models, parsers, indexes and networks.

Guarantee: every message that enters leaves once, as a result or as a dead letter, across crashes and restarts
(at least once: a call in flight at a crash is made again). Nothing waits for ever.

* Bounded: at most `capacity` calls in flight and `backlog` waiting per process and step; beyond that `on_batch`
  blocks, which stalls the source and shows as consumer lag.
* In flight is state: each snapshot holds the pending messages and their failed attempts; a restart calls again.
* Timeout per attempt, deadline per job; a call that runs into either is cancelled.
* Retry with exponential backoff and full jitter; `Retry-After` is a lower bound. A message waiting for its next attempt
  occupies no capacity.
* Order: keys overtake each other; with `keep_key_order` the messages of one key go one at a time.
* Stop: a wish to stop ends the wait for capacity, gives pending calls until its deadline, and leaves the rest in the
  snapshot. A natural end of input waits for every call.

State: the pending messages, in lanes. A lane is one key of the underlying stateful operator, so that lanes spread over
workers and an idle one costs nothing. Dead letters: poison at once, retryable after the last attempt or the deadline.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Condition
from time import monotonic
from typing import Any, Generic, TypeVar
from zlib import crc32

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from pydantic import TypeAdapter, ValidationError

from connectors.kafka.record import OutgoingRecord
from operators.envelope import Envelope
from operators.outcome import Outcome, bury, flow_step, split
from operators.produce import outgoing
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter
from schemas.errors import Fatal, Poison, Retryable
from schemas.event import utc_now
from schemas.jobs import JobState, StatusChanged

X = TypeVar("X")
Y = TypeVar("Y")

Work = Callable[[Envelope[X]], Awaitable[Y]]
"""One call: awaited on the process's event loop, cancelled on timeout. Raises Retryable, Poison or Fatal."""

LANES = 16  # more than a flow has workers; each busy lane costs one wake-up per POLL
POLL = timedelta(milliseconds=10)  # latency added to a call of seconds; 16 lanes wake 1,600 times a second at the most


@dataclass(frozen=True)
class OffloadPolicy:
    """How much at once, for how long, how often."""

    capacity: int = 64  # calls in flight per process
    backlog: int = 64  # messages waiting besides, so that a slot never idles until the next batch arrives
    timeout_s: float = 60.0  # per attempt
    attempts: int = 5  # in all; with the backoff below they span about half a minute
    backoff_base_s: float = 0.5  # the first wait is drawn from 0 to this
    backoff_cap_s: float = 30.0  # no wait is drawn from beyond this
    keep_key_order: bool = False  # messages of one key one at a time, in order


class DeadlineExceeded(Poison):
    """The job's own deadline passed: the answer is of no use any more."""


def backoff_s(policy: OffloadPolicy, failures: int, *, retry_after_s: float | None = None) -> float:
    """Seconds to wait after the n-th failure: uniform in [0, min(cap, base * 2^(n-1))], at least what was asked for.

    "Full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(policy.backoff_cap_s, policy.backoff_base_s * 2 ** (failures - 1))
    return max(random.uniform(0.0, ceiling), retry_after_s or 0.0)  # noqa: S311  # spreads load, protects no secret


@dataclass(frozen=True)
class _Ready:
    """Something to emit; the message it settles, if it settles one."""

    key: str
    item: object  # Envelope[Y] | DeadLetter | StatusChanged
    settles: int | None = None


@dataclass
class _Pending(Generic[X]):
    """A message taken in and not yet settled."""

    number: int  # within its lane
    key: str
    envelope: Envelope[X]
    failures: int = 0
    first_failed_at: datetime | None = None


class _Step(Generic[X, Y]):
    """What the lanes of one step share in a process: the work, the bound, and the codec of their snapshots."""

    def __init__(self, name: str, work: Work[X, Y], body: type[X], policy: OffloadPolicy, runtime: Runtime) -> None:
        self.name = name
        self.work = work
        self.policy = policy
        self.runtime = runtime
        self.codec: TypeAdapter[Envelope[X]] = TypeAdapter(Envelope[body])  # type: ignore[valid-type]  # made at run time
        self.settled = Condition()
        self._unsettled = 0
        self._slots = asyncio.Semaphore(policy.capacity)

    def enter(self, *, wait: bool) -> None:
        """Count one more message; blocks while the bound is reached, unless the flow is to stop."""
        bound = self.policy.capacity + self.policy.backlog
        with self.settled:
            while wait and self._unsettled >= bound and not self.runtime.stop.requested:
                self.settled.wait(0.1)  # a wish to stop does not notify: look for it ten times a second
            self._unsettled += 1

    def leave(self) -> None:
        """Count one less, and wake whoever waits."""
        with self.settled:
            self._unsettled -= 1
            self.settled.notify_all()

    def status(
        self, pending: _Pending[X], state: JobState, *, attempt: int, detail: str | None = None
    ) -> StatusChanged:
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

    async def settle(self, pending: _Pending[X], emit: Callable[[_Ready], None]) -> None:
        """Call until there is a result or a dead letter, and emit it."""
        while True:
            try:
                async with self._slots:
                    result = await self._call(pending.envelope)
            except Retryable as error:
                pending.failures += 1
                pending.first_failed_at = pending.first_failed_at or utc_now()
                wait_s = backoff_s(self.policy, pending.failures, retry_after_s=error.retry_after_s)
                if pending.failures >= self.policy.attempts or self._too_late(pending.envelope, wait_s):
                    item: Envelope[Y] | DeadLetter | Fatal = self._bury(pending, error)
                    break
                attempt = pending.failures + 1
                detail = f"attempt {attempt} of {self.policy.attempts} in {wait_s:.1f} s: {error}"
                emit(_Ready(pending.key, self.status(pending, JobState.RETRYING, attempt=attempt, detail=detail)))
                await asyncio.sleep(wait_s)
            except Fatal as error:
                item = error
                break
            except Exception as error:  # noqa: BLE001  # one message failed; any exception in an operator ends the flow
                pending.failures += 1
                item = self._bury(pending, error)
                break
            else:
                item = pending.envelope.carrying(result)
                break
        emit(_Ready(pending.key, item, settles=pending.number))
        self.leave()

    async def _call(self, envelope: Envelope[X]) -> Y:
        limit_s = self.policy.timeout_s
        deadline = envelope.job.deadline
        if deadline is not None:
            left_s = (deadline - utc_now()).total_seconds()
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"the job's deadline {deadline.isoformat()} has passed; submit it again with a later one"
                )
            limit_s = min(limit_s, left_s)
        try:
            async with asyncio.timeout(limit_s):
                return await self.work(envelope)
        except TimeoutError as error:
            raise Retryable(f"no answer within {limit_s:.1f} s") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the process ends: the message is in the snapshot
                raise
            raise Retryable("the call was cancelled from within") from error

    @staticmethod
    def _too_late(envelope: Envelope[X], wait_s: float) -> bool:
        deadline = envelope.job.deadline
        return deadline is not None and utc_now() + timedelta(seconds=wait_s) >= deadline

    def _bury(self, pending: _Pending[X], error: Exception) -> DeadLetter:
        return bury(
            pending.envelope.job,
            pending.envelope.record,
            error,
            step=self.name,
            attempts=max(pending.failures, 1),
            first_failed_at=pending.first_failed_at,
        )


_Snapshot = tuple[int, list[tuple[str, Any, int, datetime | None]]]
SNAPSHOT_VERSION = 1


class _Lane(StatefulBatchLogic[tuple[str, Envelope[X]], tuple[str, object], _Snapshot], Generic[X, Y]):
    """One lane: hands messages to the loop, collects what is ready, remembers what is pending."""

    def __init__(self, step: _Step[X, Y], resume: _Snapshot | None) -> None:
        self._step = step
        self._ready: deque[_Ready] = deque()  # appended to by the loop's thread, emptied by the worker's
        self._pending: dict[int, _Pending[X]] = {}  # by number: in order of arrival
        self._queues: dict[
            str, deque[_Pending[X]]
        ] = {}  # with keep_key_order: of each key, the first one is being worked on
        self._numbers = 0
        self._poll_at = datetime.now(UTC) + POLL  # at once after a restart: no new message need ever come to this lane
        for key, plain, failures, first_failed_at in self._restore(resume):
            self._take(key, plain, failures, first_failed_at, wait=False)

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
    ) -> _Pending[X]:
        self._step.enter(wait=wait)
        self._numbers += 1
        pending = _Pending(self._numbers, key, envelope, failures, first_failed_at)
        self._pending[pending.number] = pending
        if self._step.policy.keep_key_order:
            queue = self._queues.setdefault(key, deque())
            queue.append(pending)
            if len(queue) > 1:
                return pending
        self._start(pending)
        return pending

    def _start(self, pending: _Pending[X]) -> None:
        future = self._step.runtime.loop.submit(self._step.settle(pending, self._ready.append))
        future.add_done_callback(self._stop_if_unsettled)

    def _stop_if_unsettled(self, future: Future[None]) -> None:
        """A call that ended neither way would be waited for in silence and for ever: stop the flow instead."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._ready.append(_Ready("", Fatal(f"{self._step.name}: a call ended with {type(error).__name__}")))

    def _collect(self) -> list[tuple[str, object]]:
        """Everything that is ready. Raises Fatal if a call did."""
        emitted: list[tuple[str, object]] = []
        while self._ready:
            ready = self._ready.popleft()
            if isinstance(ready.item, Fatal):
                raise ready.item
            emitted.append((ready.key, ready.item))
            if ready.settles is not None:
                del self._pending[ready.settles]
                self._start_next(ready.key)
        return emitted

    def _start_next(self, key: str) -> None:
        queue = self._queues.get(key)
        if queue is None:
            return
        queue.popleft()
        if queue:
            self._start(queue[0])
        else:
            del self._queues[key]

    def _emit(self, emitted: list[tuple[str, object]]) -> tuple[list[tuple[str, object]], bool]:
        self._poll_at = datetime.now(UTC) + POLL
        return emitted, not self._pending

    def on_batch(self, values: list[tuple[str, Envelope[X]]]) -> tuple[list[tuple[str, object]], bool]:
        emitted: list[tuple[str, object]] = []
        for key, envelope in values:
            pending = self._take(key, envelope, wait=True)
            emitted.append((key, self._step.status(pending, JobState.RUNNING, attempt=1)))
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
            (item.key, self._step.codec.dump_python(item.envelope), item.failures, item.first_failed_at)
            for item in self._pending.values()
        ]


def _lane(keyed: tuple[str, Envelope[X]]) -> str:
    return f"lane-{crc32(keyed[0].encode()) % LANES:02d}"


@operator
def offload(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    work: Work[X, Y],
    *,
    body: type[X],
    policy: OffloadPolicy,
    runtime: Runtime,
) -> Outcome[Y]:
    """Call `work` for each message; see the module's docstring for what is guaranteed.

    `body` is the class of the bodies that come in: a pydantic model or a dataclass of plain values, since pending ones
    are part of the recovery state. Each message's status is emitted here: running, and retrying before every retry.
    """
    step = _Step(flow_step(step_id), work, body, policy, runtime)

    def status(item: object) -> OutgoingRecord | None:
        return outgoing(item, step=step.name) if isinstance(item, StatusChanged) else None

    def settled(item: object) -> Envelope[Y] | DeadLetter | None:
        return item if isinstance(item, Envelope | DeadLetter) else None

    lanes = op.key_on("lane", up, _lane)
    worked = op.key_rm("unlane", op.stateful_batch("work", lanes, lambda resume: _Lane(step, resume)))
    op.output("statuses", op.filter_map_value("status", worked, status), runtime.topics.sink())
    return split(op.filter_map_value("settled", worked, settled))
