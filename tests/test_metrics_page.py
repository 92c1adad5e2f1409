"""The page of metrics is what the code measures."""

import re
from pathlib import Path

from cli.metrics_table import metrics_page, metrics_table

ROOT = Path(__file__).parent.parent
FOLDERS = ("schemas", "connectors", "operators", "flows", "gateway", "cli")


def test_the_page_is_made_of_the_metrics() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_page()


def test_no_metric_of_the_code_is_missing_in_the_table() -> None:
    code = "".join(path.read_text(encoding="utf-8") for each in FOLDERS for path in (ROOT / each).rglob("*.py"))
    defined = set(re.findall(r'(?:(?:Counter|Gauge|Histogram)\(\s*|^NAME = )"(headrace_\w+)"', code, re.MULTILINE))
    told = set(re.findall(r"^\| `(headrace_\w+)`", metrics_table(), re.MULTILINE))
    assert defined
    assert {name.removesuffix("_total") for name in defined} == {name.removesuffix("_total") for name in told}


def test_every_metric_is_told_once_and_explained() -> None:
    rows = [row.split(" | ") for row in metrics_table().splitlines()[2:]]
    assert len({name for name, *_ in rows}) == len(rows)
    assert all(len(meaning) > 10 for *_, meaning in rows)
