"""`headrace bench peers` on small sizes, with what needs no peer's environment but confluent-kafka's."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers.control.work import Enriched, decode, enrich, events
from benchmarks.peers.environments import Unavailable, python_of
from benchmarks.peers.measure import Program
from benchmarks.peers.soak.measured import Sample, soak_figures
from tests.headrace_process import headrace
from tests.kafka.apache_kafka import missing_tools


def test_the_events_are_the_same_each_time_and_say_what_must_come_of_them() -> None:
    load = events(2000)
    assert load == events(2000)
    decoded: list[str] = []
    malformed = 0
    for _, value in load.messages:
        try:
            decoded.append(decode(value).job_id)
        except ValueError:
            malformed += 1
    assert set(decoded) == load.ids
    assert malformed == load.malformed > 0
    assert len(decoded) > len(load.ids), "some ids come again"
    assert 550 < sum(len(value) for _, value in load.messages) / 2000 < 650


def test_the_same_request_is_enriched_to_the_same_bytes() -> None:
    _, value = events(1).messages[0]
    once = enrich(decode(value))
    assert once == enrich(decode(value))
    assert Enriched.model_validate_json(once).region == "north"


def test_a_programs_cost_includes_that_of_its_children(tmp_path: Path) -> None:
    work = "x = bytearray(80_000_000); import time; t = time.process_time()\nwhile time.process_time() - t < 0.5: pass"
    parent = (
        "import subprocess, sys; print('{\"said\": 1}', flush=True); "
        f"subprocess.run([sys.executable, '-c', {work!r}])"
    )
    with Program([sys.executable, "-c", parent], dict(os.environ), log=tmp_path / "log") as program:
        assert program.line(30.0) == {"said": 1}
        assert program.wait(60.0) == 0
    assert program.cpu_s > 0.3
    assert program.peak_rss_bytes > 80_000_000


def test_a_program_that_ends_too_soon_is_unavailable_for_the_reason_that_it_gave(tmp_path: Path) -> None:
    fails = "raise SystemExit('no such broker')"
    with (
        Program([sys.executable, "-c", fails], dict(os.environ), log=tmp_path / "log") as program,
        pytest.raises(Unavailable, match="no such broker"),
    ):
        program.line(30.0)


def test_a_killed_program_leaves_no_child_behind(tmp_path: Path) -> None:
    parent = (
        "import subprocess; child = subprocess.Popen(['sleep', '60']); "
        "print('{\"pid\": %d}' % child.pid, flush=True); child.wait()"
    )
    with Program([sys.executable, "-c", parent], dict(os.environ), log=tmp_path / "log") as program:
        child = program.line(30.0)["pid"]
        program.kill()
    until = time.monotonic() + 10.0
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_peer_without_requirements_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"no benchmarks/peers/requirements/nobody\.txt"):
        python_of("nobody")


def test_a_soak_is_flat_if_memory_is_the_same_once_warm() -> None:
    flat = [Sample(10.0 * number, 400.0 if number else 100.0, 3, 1.0, number, number) for number in range(60)]
    assert soak_figures(flat)[1]
    growing = [Sample(10.0 * number, 400.0 + 2 * number, 3, 1.0, number, number) for number in range(60)]
    figures, is_flat = soak_figures(growing)
    assert not is_flat
    assert figures["lag_max"] == 3


@pytest.mark.kafka
@pytest.mark.slow  # a broker, four runs and two kills: two minutes
@pytest.mark.timeout(600)
def test_control_counts_what_arrives_of_headrace_and_of_a_loop_by_hand() -> None:
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    command = ("bench", "peers", "--section", "control", "--system", "headrace", "--system", "by_hand", "--quick")
    done = headrace(*command, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    for system in ("headrace", "by_hand"):
        wanted = {"events_s", "cpu_s_per_100k", "peak_rss_mb", "arrived", "lost", "repeated"}
        assert figures.keys() >= {f"control.{system}.{name}" for name in wanted}
    assert figures["control.headrace.lost"] == 0
    unique, repeated = figures["control.killed.unique_ids"], figures["control.headrace.repeated"]
    assert figures["control.headrace.arrived"] == unique + repeated
