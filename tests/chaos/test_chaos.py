"""Short runs of the harness: what holds under kills, and that the harness would notice if it did not."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.harness import Plan, run_chaos
from tests.headrace_process import headrace
from tests.kafka.apache_kafka import missing_tools

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _tools() -> None:
    """Each run has a broker of its own, which the command starts as well."""
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


SHORT = Plan(jobs=400, documents=40, kills=9, seed=1)


def test_nothing_is_lost_or_paid_twice_under_kills_broker_restart_and_model_outage(tmp_path: Path) -> None:
    report = run_chaos(SHORT, tmp_path, print)
    assert report.verdict.violations == {}, report.verdict.examples
    assert sum(report.kills_by_point.values()) == SHORT.kills
    assert report.verdict.ambiguous > 0, "no kill hit a call in flight: the run proves too little"
    assert report.verdict.cancelled > 0, "every cancellation came too late: the run proves too little"


@pytest.mark.slow
def test_without_the_ledger_the_harness_reports_second_bills_and_second_results(tmp_path: Path) -> None:
    report = run_chaos(replace(SHORT, ledger=False, broker_restarts=0, outage_s=0.0), tmp_path, print)
    assert report.verdict.violations.keys() >= {"duplicate_results"}
    assert report.verdict.duplicate_calls_outside_window + report.verdict.paid_after_commit > 0


@pytest.mark.slow
def test_with_bytewaxs_own_sink_the_harness_reports_lost_results(tmp_path: Path) -> None:
    plan = replace(SHORT, jobs=600, kills=12, stock_sink=True, broker_restarts=14, outage_s=0.0, end_s=30.0, seed=4)
    report = run_chaos(plan, tmp_path, print)
    assert report.verdict.violations.keys() & {"lost", "malformed_lost"}  # results, or dead letters


@pytest.mark.slow
def test_a_model_outage_of_a_minute_is_waited_out(tmp_path: Path) -> None:
    report = run_chaos(replace(SHORT, outage_s=60.0), tmp_path, print)
    assert report.verdict.violations == {}, report.verdict.examples


@pytest.mark.slow
def test_the_benchmark_prints_one_json_object_and_names_its_figures() -> None:
    done = headrace("bench", "chaos", "--kills", "2", "--jobs", "40", "--seed", "3", "--outage", "0", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bench"] == "chaos"
    assert report["figures"].keys() >= {
        "jobs",
        "kills",
        "kills_by_point",
        "lost",
        "duplicate_results",
        "duplicate_calls",
        "ambiguous",
        "duplicate_calls_outside_window",
        "recovery_s_max",
    }
    assert (report["figures"]["kills"], report["figures"]["lost"]) == (2, 0)
