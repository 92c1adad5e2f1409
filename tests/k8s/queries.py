"""The PromQL in rules and dashboards, taken apart by a parser: which metrics and labels it asks for."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from promql_parser import AggregateExpr, BinaryExpr, Expr, VectorSelector

from cli.metrics_table import metrics_page
from tests.k8s.rendering import K8S

MONITORING = K8S / "base/monitoring"
RULES = MONITORING / "rules.yml"
DASHBOARDS = sorted(MONITORING.glob("dashboards/*.json"))
TARGET_LABELS = frozenset({"job", "instance", "namespace"})  # which Prometheus gives to all that it scrapes
OTHERS: dict[str, frozenset[str]] = {  # not ours: of Prometheus, of its client, of Kubernetes
    "up": frozenset(),
    "process_start_time_seconds": frozenset(),
    "process_resident_memory_bytes": frozenset(),
    "kube_statefulset_replicas": frozenset({"statefulset"}),
    "kube_statefulset_status_replicas_ready": frozenset({"statefulset"}),
    "kubelet_volume_stats_available_bytes": frozenset({"persistentvolumeclaim"}),
    "kubelet_volume_stats_capacity_bytes": frozenset({"persistentvolumeclaim"}),
}
VARIABLES = {"$__rate_interval": "5m", "$__range": "3h", "$flow": ".*", "$tenant": ".*"}

_ROW = re.compile(r"^\| `(headrace_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)


@cache
def metrics() -> dict[str, frozenset[str]]:
    """The labels of every series that our processes expose."""
    series: dict[str, frozenset[str]] = {}
    for name, kind, names in _ROW.findall(metrics_page()):
        labels = frozenset(re.findall(r"`(\w+)`", names))
        if kind == "histogram":
            series |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            series[name] = labels
    assert series
    return series


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def targets(dashboard: Path) -> Iterator[tuple[str, str, str]]:
    """Of each query of a dashboard: the title of its panel, its expression, with variables filled in, its legend."""
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression, target["legendFormat"]


def every_expression() -> list[str]:
    """Of alerts and dashboards."""
    return [rule["expr"] for rule in rules()] + [
        expression for dashboard in DASHBOARDS for _, expression, _ in targets(dashboard)
    ]


def faults(expression: str) -> list[str]:
    """Metrics that nobody exposes, and labels that a metric does not have."""
    found: list[str] = []
    known = metrics() | OTHERS

    def labels_of(part: Expr) -> set[str]:
        labels: set[str] = set()

        def visit(each: Expr) -> None:
            if isinstance(each, VectorSelector) and each.name in known:
                labels.update(known[each.name])

        promql_parser.walk(part, visit)
        return labels | TARGET_LABELS

    def visit(each: Expr) -> None:
        if isinstance(each, VectorSelector):
            if each.name not in known:
                found.append(f"no metric {each.name}")
                return
            own = known[each.name] | TARGET_LABELS
            found.extend(f"{each.name} has no {m.name}" for m in each.matchers.matchers if m.name not in own)
        if isinstance(each, AggregateExpr) and each.modifier is not None:
            missing = set(each.modifier.labels) - labels_of(each.expr)
            found.extend(f"nothing below {each.op} has {label}" for label in missing)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def labels_of_result(expression: str) -> set[str] | None:
    """The labels that the result has, where an aggregation says so; None where it has all of its metric's."""
    part = promql_parser.parse(expression)
    while isinstance(part, BinaryExpr):
        part = part.lhs
    labels: list[set[str]] = []

    def visit(each: Expr) -> None:
        if isinstance(each, AggregateExpr):
            labels.append(set(each.modifier.labels) if each.modifier is not None else set())

    promql_parser.walk(part, visit)
    widest = [each for each in labels if each] or labels
    return widest[0] if widest else None
