"""Callbacks to their receivers, one attempt at a time; the next one is an event again.

Guarantee: a callback is delivered, or tried again by schedule, or a dead letter; a crash between delivery and snapshot
delivers it once more, under the same id. Nothing here changes the status of its job, which has ended. State: offload's
pending calls. Dead letters, which may be redriven, and are tried anew: the last attempt failed; the receiver wants no
more, or may not be sent any; nothing to sign with.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from prometheus_client import Counter

from connectors.webhook.port import Webhooks
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome, bury, flow_step, not_the_end, sort_out
from operators.places import Places
from operators.runtime import Runtime
from operators.traced import settled
from schemas.callbacks import CallbackDeferred
from schemas.dead_letter import DeadLetter, redrives
from schemas.errors import Fatal, GaveUp, HeadraceError, Retryable
from schemas.event import utc_now

CALLBACKS = Counter("headrace_callbacks_total", "Attempts to deliver callbacks, and callbacks given up", ["outcome"])

DELIVER = OffloadPolicy(
    dependency=None,  # each receiver is one of its own
    capacity=256,  # calls are waits; eight tenants whose receivers all hang still leave room
    backlog=256,
    timeout_s=60.0,  # the connector's own is a quarter of it
    attempts=1,
    cancellable=False,  # that a job was cancelled is what is told
    silent=True,
)
FAILURE_CHARS = 500
MINUTE_S, HOUR_S = 60.0, 3600.0


@dataclass(frozen=True)
class RetryPolicy:
    """When a callback is tried again."""

    waits_s: tuple[float, ...] = (
        *(5.0, 30.0, 2 * MINUTE_S, 10 * MINUTE_S, 30 * MINUTE_S),
        *(HOUR_S, 3 * HOUR_S, 6 * HOUR_S, 12 * HOUR_S),
    )  # after each failed attempt but the last: a day in all
    jitter: float = 0.25  # of a wait, either way
    retry_after_cap_s: float = 12 * HOUR_S  # a receiver may ask for more time, within bounds

    def wait_s(self, attempts: int, retry_after_s: float | None = None) -> float | None:
        """Seconds until the next attempt, after so many; None: there is none."""
        if attempts > len(self.waits_s):
            return None
        wait_s = self.waits_s[attempts - 1] * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  # spreads load
        return max(wait_s, min(retry_after_s or 0.0, self.retry_after_cap_s))


@dataclass(frozen=True)
class Attempted:
    """A callback, and why it was not taken, if it was not."""

    callback: CallbackDeferred
    error: HeadraceError | None


def message(callback: CallbackDeferred) -> bytes:
    """The body: the same bytes at every attempt."""
    ended_at = callback.ended_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    told = {"type": callback.ending, "timestamp": ended_at, "data": callback.data}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def conclude(attempted: Attempted, policy: RetryPolicy, now: datetime, *, former: int) -> CallbackDeferred | None:
    """The next attempt, if one is needed. Raises what the last one raised, or GaveUp. `former`: attempts before."""
    callback, error = attempted.callback, attempted.error
    if error is None:
        return None
    if not isinstance(error, Retryable):
        raise error
    wait_s = policy.wait_s(former + 1, error.retry_after_s)
    if wait_s is None:
        raise GaveUp(f"not delivered at {former + 1} attempts: {error}; see to the receiver, and redrive this")
    return callback.model_copy(
        update={
            "attempts": former + 1,
            "not_before": now + timedelta(seconds=wait_s),
            "failure": str(error)[:FAILURE_CHARS],
        }
    )


@operator
def deliver(
    step_id: str,
    up: KeyedStream[Envelope[CallbackDeferred]],
    webhooks: Webhooks,
    places: Places,
    runtime: Runtime,
    policy: RetryPolicy = RetryPolicy(),  # frozen
    clock: Callable[[], datetime] = utc_now,
) -> Outcome[CallbackDeferred]:
    """Post each callback once; what comes out are those that are to be tried again."""
    step = flow_step(step_id)

    async def work(envelope: Envelope[CallbackDeferred]) -> Attempted:
        callback = envelope.body
        try:
            await webhooks.post(
                callback.url, tenant=callback.tenant, webhook_id=callback.callback_id, body=message(callback)
            )
        except Fatal:
            raise
        except HeadraceError as error:  # what becomes of it is not offload's to say: the next attempt is an event
            return Attempted(callback, error)
        finally:
            places.give(callback.callback_id)
        return Attempted(callback, None)

    def settle(envelope: Envelope[Attempted]) -> Envelope[CallbackDeferred] | DeadLetter | None:
        # A redriven callback begins anew.
        former = 0 if redrives(envelope.record.headers) else envelope.body.callback.attempts
        try:
            again = conclude(envelope.body, policy, clock(), former=former)
        except HeadraceError as error:
            CALLBACKS.labels("dead_lettered").inc()
            received_at, attempts = envelope.received_at, former + 1
            letter = bury(envelope.job, envelope.record, error, step=step, attempts=attempts, received_at=received_at)
            return not_the_end(letter)
        CALLBACKS.labels("delivered" if again is None else "deferred").inc()
        if again is not None:
            return envelope.carrying(again)
        settled(envelope, step=step, outcome="delivered", tracer=runtime.tracer)
        return None

    posted = offload("work", up, work, body=CallbackDeferred, policy=DELIVER, runtime=runtime)
    parted, _ = sort_out(op.filter_map_value("settle", posted.oks, settle))
    broken = op.map_value("unended", posted.errs, not_the_end)
    return Outcome(parted.oks, op.merge("failed", parted.errs, broken))
