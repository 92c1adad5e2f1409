"""Every metric as a Markdown table, made of the metrics themselves."""

from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase

from cli import run
from connectors import circuit, executors
from connectors.embedder import batcher, cache
from connectors.histogram import Histogram
from connectors.kafka import lag, progress, recovery
from gateway import access
from operators import budget, deliver, guard, infer, offload, paid_once, produce, resume

MODULES = (
    *(run, progress, lag, recovery, offload, circuit, executors, batcher, cache, infer, produce),
    *(budget, guard, paid_once, resume, deliver, access),
)
"""Those that define metrics, in the table's order."""

_HEADER = """\
# Metrics and probes

Each process serves one port, `HEADRACE_METRICS_PORT`; without it, none. It is plain HTTP without a password: keep it
inside the cluster. The gateway serves `/metrics` there, and `/healthz` and `/readyz` on its own port.

| path | answer |
|---|---|
| `/metrics` | what the table below lists, for Prometheus |
| `/livez` | 200 while every flow of the process closes epochs, with a line about each; 503 if one has closed none for \
`HEADRACE_STALL_S` seconds |
| `/readyz` | 200 once every flow has closed its first epoch, and so restored its state; 503 before, and after SIGTERM |

## What `/livez` means

A flow reads in epochs of `HEADRACE_EPOCH_S`. One is closed when all that was read in it is through every step and what
it wrote is acknowledged by the brokers. Closing them is a flow's heartbeat: a process whose port answers may hang, and
one that reads nothing may be well. These halt epochs and are no reason for a restart:

- **Start.** Loading models and restoring a large state. The process is alive until its first epoch; let a startup probe
  on `/readyz` say how long that may take.
- **Brokers that are away.** A flow that has written something waits for them for 125 seconds at most, and then stops by
  itself, with exit code 1; one that has nothing to write goes on closing epochs.
- **A step that is full far beyond its bound**, which a burst through a cluster or a new budget can make it. It waits
  for calls in flight, all of which end, and is alive meanwhile; for hours, if a model is away for hours.
- **SIGTERM.** The drain takes up to `HEADRACE_DRAIN_S`; the process is alive until then, and `HEADRACE_STALL_S` longer.

What is left is a flow that hangs. `HEADRACE_STALL_S` is 180 so that it is longer than all of that; it must be at least
twice `HEADRACE_EPOCH_S`. A liveness probe every 10 seconds with three failures restarts such a flow after 3.5 minutes;
what it then gets to end is the probe's `terminationGracePeriodSeconds`, since what hangs may not hear SIGTERM.

The processes of a cluster close epochs together: if one hangs, all of them are soon without a heartbeat.

## Metrics

Times are in seconds. A histogram has the series `_bucket`, `_sum` and `_count`. Labels are bounded: of the tenants that
a process meets the first 1,000 keep their names, and all others are `other`; so it is with models and tools, of which
100 keep theirs. A `step` is one of the flow file: `answer.infer`. What a process counts begins at 0 when it starts.

- Busy share of an executor: `rate(headrace_executor_busy_seconds_total[5m]) / headrace_executor_workers`. Of a step
  whose calls are waits: `headrace_offload_in_flight / headrace_offload_capacity`.
- Lag is what a flow has not taken up. What it has taken up and not finished is in flight or waiting. The lag that a
  consumer group shows, and an autoscaler sees, is the larger by what two snapshots are apart.

This table is made of the code (`cli/metrics_table.py`); a test fails when it is stale.

"""


def metrics_table() -> str:
    """Name, type, labels and meaning."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, meaning in _metrics():
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {kind} | {shown} | {meaning.rstrip('.')}. |")
    return "\n".join(rows) + "\n"


def metrics_page() -> str:
    """What docs/metrics.md holds."""
    return _HEADER + metrics_table()


def _metrics() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    told = set()
    for module in MODULES:
        for metric in vars(module).values():
            if id(metric) in told:  # imported from where it is defined
                continue
            told.add(id(metric))
            if isinstance(metric, Histogram):
                yield metric.name, "histogram", metric.labelnames, metric.documentation
            elif isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                name = f"{family.name}_total" if family.type == "counter" else family.name
                yield name, family.type, metric._labelnames, family.documentation  # noqa: SLF001  # told nowhere else
        if module is lag:
            yield lag.NAME, "gauge", lag.LABELS, lag.DOCUMENTATION
