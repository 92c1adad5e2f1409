"""What ended jobs are told to their callback URLs, signed; what is not taken is tried again for a day.

results.completed ─┬─► owed ─► once ─► callbacks.deferred
jobs.status ───────┘                       │   ▲
                                           ▼   │ another attempt
                                          hold ─► deliver ─► HTTP        failures ─► callbacks.deferred.dlq
"""

from dataclasses import dataclass, field

from bytewax.dataflow import Dataflow

from connectors.webhook.port import Webhooks
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.dedup import DedupPolicy, once
from operators.deliver import RetryPolicy, deliver
from operators.hold import HoldPolicy, hold
from operators.owed import CALLBACK, owed
from operators.places import Places, PlacesPolicy
from operators.produce import produce
from operators.runtime import Runtime
from schemas.callbacks import CallbackDeferred
from schemas.jobs import StatusChanged
from schemas.results import ResultCompleted

ONCE = DedupPolicy(remember_s=14 * 24 * 3600.0)  # a week for certain: as long as requests are kept, and can end anew


@dataclass(frozen=True)
class WebhooksPolicy:
    """What its steps allow."""

    places: PlacesPolicy = field(default_factory=PlacesPolicy)
    hold: HoldPolicy = field(default_factory=HoldPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)


def build(
    runtime: Runtime,
    webhooks: Webhooks,
    policy: WebhooksPolicy = WebhooksPolicy(),  # frozen
) -> Dataflow:
    """Callbacks, for all flows whose jobs end."""
    flow = Dataflow("webhooks")
    completed = consume("completed", flow, ResultCompleted, runtime, holding=CALLBACK)
    ended = consume("ended", flow, StatusChanged, runtime, holding=CALLBACK)
    deferred = consume("deferred", flow, CallbackDeferred, runtime)

    callbacks = owed("owed", completed.oks, ended.oks)
    fresh = once("once", callbacks.oks, lambda envelope: envelope.body.callback_id, ONCE)
    produce("announced", fresh, CallbackDeferred, runtime)

    places = Places(policy.places)
    due = hold("hold", deferred.oks, places, policy.hold)
    failed = deliver("deliver", due.oks, webhooks, places, runtime, policy.retry)
    produce("again", failed.oks, CallbackDeferred, runtime)
    stopped = (each.errs for each in (completed, ended, deferred, callbacks, due, failed))
    dead_letter("dlq", *stopped, runtime=runtime)
    return flow
