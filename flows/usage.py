"""usage.tokens ─► past ─► once ─► windows ─► usage.windows; failures ─► usage.tokens.dlq."""

from bytewax.dataflow import Dataflow

from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.dedup import DedupPolicy, once
from operators.outcome import attempt
from operators.runtime import Runtime
from operators.usage_windows import past, usage_windows
from schemas.usage import TokensUsed

ONCE = DedupPolicy(remember_s=2 * 32 * 24 * 3600.0)  # for certain as long as windows are kept


def build(runtime: Runtime) -> Dataflow:
    """What tenants have used, by window."""
    flow = Dataflow("usage")
    used = consume("used", flow, TokensUsed, runtime)
    ended = attempt("past", used.oks, past)
    calls = once("once", ended.oks, lambda envelope: envelope.body.event_id, ONCE)
    refused = usage_windows("windows", calls, runtime)
    dead_letter("dlq", used.errs, ended.errs, refused, runtime=runtime)
    return flow
