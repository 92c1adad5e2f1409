"""Every benchmark runs, and prints one JSON object with the figures that it is known for."""

import json
import os

import pytest

from benchmarks.extract import FORMATS, recall
from benchmarks.offload import ideal_s
from tests.headrace_process import headrace
from tests.kafka.apache_kafka import missing_tools


@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        (("dedup", "--ids", "2000"), {"rss_mb", "restore_s"}),
        (("admission", "--events", "2000", "--rounds", "1"), {"events_s_core", "bare_events_s_core", "ratio_to_bare"}),
        pytest.param(
            ("embed", "--chunks", "20", "--rounds", "1"),
            {
                "default_chunks_s",
                "tuned_chunks_s",
                "pipeline_chunks_s",
                "ratio_to_default",
                "ratio_to_tuned",
                "gpu_busy",
            },
            marks=pytest.mark.slow,  # three processes that load a model
        ),
        (
            ("extract", "--words", "500", "--rounds", "1"),
            {f"{name}_{figure}" for name in FORMATS for figure in ("mb_s", "recall")},
        ),
        (
            ("offload", "--calls", "20", "--capacity", "20", "--mixed-s", "0.1", "0.5"),
            {"ratio_to_ideal", "ratio_to_ideal_mixed", "cpu_ms_per_call"},
        ),
    ],
)
def test_a_benchmark_prints_one_json_object(arguments: tuple[str, ...], figures: set[str]) -> None:
    done = headrace("bench", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bench"] == arguments[0]
    assert report["figures"].keys() >= figures
    assert report["hardware"].keys() >= {"cpu", "cores", "amx", "gpu"}
    assert all(aim.keys() == {"figure", "aim", "met"} for aim in report["aims"])


@pytest.mark.kafka
@pytest.mark.slow  # a broker, two gateways, a flow and its model: a minute
def test_the_gateway_loses_nothing_under_a_small_load() -> None:
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    done = headrace("bench", "gateway", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures.keys() >= {"post_s", "post_p99_ms", "sse_p50_ms", "sse_p99_ms", "sse_kb_per_stream"}
    assert figures.keys() >= {"burst_accept_p99_ms", "sync_burst_errors"}
    assert figures["post_errors"] == 0
    assert (figures["sse_lost"], figures["sse_repeated"]) == (0, 0)
    assert figures["sse_resumed"] > 0
    assert figures["burst_errors"] == 0
    assert figures["burst_calls"] == figures["burst_completed"] == figures["burst_requests"]


def test_the_ideal_begins_each_call_when_a_slot_is_free() -> None:
    assert ideal_s([2.0] * 10, 5) == 4.0
    assert ideal_s([5.0, 1.0, 1.0, 1.0], 2) == 5.0
    assert ideal_s([1.0], 100) == 1.0


def test_recall_counts_each_word_as_often_as_it_is_wanted() -> None:
    assert recall(["a", "b", "b", "c"], "b, a; c b") == 1.0
    assert recall(["a", "b", "b", "c"], "c: b") == 0.5
    assert recall(["a"], "A") == 0.0
