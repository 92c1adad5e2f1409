"""Dashboards ask for what there is, and Grafana finds them."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.k8s.queries import DASHBOARDS, MONITORING, faults, labels_of_result, metrics, targets
from tests.k8s.rendering import compose, of_kind, rendered

dashboards = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)


@dashboards
def test_every_query_asks_for_metrics_and_labels_that_there_are(dashboard: Path) -> None:
    queries = list(targets(dashboard))
    assert queries
    assert {title: found for title, expression, _ in queries if (found := faults(expression))} == {}


@dashboards
def test_every_legend_names_labels_of_its_result(dashboard: Path) -> None:
    for title, expression, legend in targets(dashboard):
        labels = labels_of_result(expression)
        if labels is not None:
            assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels, title


@dashboards
def test_variables_list_labels_that_there_are(dashboard: Path) -> None:
    board = json.loads(dashboard.read_text())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            ((metric, label),) = re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert label in metrics()[metric]
    used = set(re.findall(r"\$\{?([a-z]\w+)", dashboard.read_text()))
    assert used - {variable["name"] for variable in board["templating"]["list"]} == set()


@dashboards
def test_every_panel_has_a_place_of_its_own_and_says_what_it_shows(dashboard: Path) -> None:
    board = json.loads(dashboard.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_metric_is_on_a_dashboard() -> None:
    shown = "".join(path.read_text() for path in DASHBOARDS)
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics()}
    assert {family for family in families if family not in shown} == set()


def test_grafana_finds_them_in_kubernetes_and_in_compose() -> None:
    (stored,) = (
        each
        for each in of_kind(rendered("overlays/production"), "ConfigMap")
        if each["metadata"]["name"] == "headrace-dashboards"
    )
    assert stored["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert stored["data"] == {path.name: path.read_text() for path in DASHBOARDS}
    mounted = {each["target"]: each["source"] for each in compose()["services"]["grafana"]["volumes"]}
    (provider,) = yaml.safe_load((MONITORING / "grafana-dashboards.yml").read_text())["providers"]
    assert Path(mounted[provider["options"]["path"]]) == MONITORING / "dashboards"
    (source,) = yaml.safe_load((MONITORING / "grafana-datasources.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
