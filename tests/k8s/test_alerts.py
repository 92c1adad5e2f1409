"""Alerts fire when they should and not before, say what to do, and ask for what there is."""

import re
import subprocess

import yaml

from cli.wiring import FLOWS
from tests.k8s.queries import MONITORING, RULES, faults, rules
from tests.k8s.rendering import ROOT, compose, needed

UNIT_TESTS = ROOT / "tests/k8s/alerts.test.yml"


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([needed("promtool"), *arguments], capture_output=True, text=True, check=False)


def test_prometheus_takes_the_rules_and_its_configuration() -> None:
    checked = promtool("check", "config", str(MONITORING / "prometheus.yml"))
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert f"{len(rules())} rules found" in checked.stdout


def test_alerts_fire_and_are_silent_when_they_should() -> None:
    tested = promtool("test", "rules", str(UNIT_TESTS))
    assert tested.returncode == 0, tested.stderr + tested.stdout


def test_every_alert_fires_in_one_test_and_is_silent_in_another() -> None:
    cases = [case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    named = [rule["alert"] for rule in rules()]
    assert len(named) == len(set(named))
    assert fires == set(named)
    assert silent == set(named)


def test_every_alert_asks_for_metrics_and_labels_that_there_are() -> None:
    assert {rule["alert"]: found for rule in rules() if (found := faults(rule["expr"]))} == {}


def test_an_unknown_metric_or_label_is_found() -> None:
    assert faults("sum by (flow) (rate(headrace_epochs_seconds_count[5m]))") != []
    assert faults("sum by (step) (rate(headrace_epoch_seconds_count[5m]))") != []
    assert faults('headrace_epoch_seconds_count{step="x"}') != []


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operations.md#alert-{rule['alert'].lower()}"


def test_every_runbook_has_a_section() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-").replace("`", "") for heading in headings}
    assert {rule["annotations"]["runbook"].partition("#")[2] for rule in rules()} <= anchors


def test_alerts_of_flows_are_about_all_flows() -> None:
    listed = re.findall(r"\bingest\|[a-z|]+", RULES.read_text())
    assert listed
    assert {frozenset(each.split("|")) for each in listed} == {frozenset(FLOWS)}


def test_the_scrape_configuration_names_services_and_ports_of_compose() -> None:
    services = compose()["services"]
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    named = {target: group["labels"]["job"] for group in job["static_configs"] for target in group["targets"]}
    named |= {f"{name}:{each['port']}": name for each in job["dns_sd_configs"] for name in each["names"]}
    expected = {
        f"{name}:{service['environment']['HEADRACE_METRICS_PORT']}": name
        for name, service in services.items()
        if service["image"].startswith("headrace") and name not in {"topics", "ingest-gpu"}  # which is `ingest` there
    }
    assert named == expected
