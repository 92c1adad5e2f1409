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
# Metrics

Each process serves its metrics for Prometheus at `/metrics` of the port `HEADRACE_METRICS_PORT`. Times are in seconds.
A histogram has the series `_bucket`, `_sum` and `_count`. This page is made of the code (`metrics_page` in
`cli/metrics_table.py`); a test fails when it is stale.

Labels are bounded: of the tenants that a process meets, the first 1,000 keep their names, and all others are `other`;
so it is with models and tools, of which 100 keep theirs. A `step` is a step of the flow file: `answer.infer`.

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
