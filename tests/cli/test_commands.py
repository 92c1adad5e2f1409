"""What a new user types, and what the command says back: bad settings, no broker, Ctrl-C."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from connectors.kafka.embedded import EmbeddedKafka
from connectors.vector_index.edge import EdgeIndex
from tests.headrace_process import headrace

LETTER = "cbfa0eb3-5dd9-583b-9205-8f7c0ab1bbd2"


def only_line(text: str) -> str:
    """The one line of an error; usage errors of the command line carry a usage line before it."""
    lines = [line for line in text.strip().splitlines() if not line.startswith(("Usage:", "Try "))]
    lines = [line for line in lines if line]
    assert len(lines) == 1, text
    return lines[0]


def test_help_lists_every_command() -> None:
    shown = headrace("--help").stdout
    for command in ("demo", "dev", "run", "schemas", "submit", "topics", "up"):
        assert f"  {command} " in shown


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "HEADRACE_KAFKA_BOOTSTRAP is missing"),
        ({"HEADRACE_EPOCH_S": "0"}, "HEADRACE_EPOCH_S='0': Input should be greater than or equal to 0.1"),
        ({"HEADRACE_KAFKA_OPTIONS": "ssl"}, "HEADRACE_KAFKA_OPTIONS: not JSON"),
        ({"HEADRACE_FILE_ROOTS": "[oops"}, "HEADRACE_FILE_ROOTS='[oops'"),
        ({"HEADRACE_LLM_URL": "http://127.0.0.1:1/v1"}, "HEADRACE_LLM_MODEL is missing"),
        ({"HEADRACE_CHUNK_OVERLAP_TOKENS": "150"}, "HEADRACE_CHUNK_OVERLAP_TOKENS=150: must be at most half"),
        ({"HEADRACE_LEDGER": "mysql://user:pass@db/x"}, "HEADRACE_LEDGER: mysql:// is no ledger"),
        ({"HEADRACE_LOG_LEVEL": "loud"}, "HEADRACE_LOG_LEVEL='loud'"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_the_variable(variables: dict[str, str], says: str) -> None:
    refused = headrace("run", "ingest", **variables)
    assert refused.returncode == 2
    assert says in only_line(refused.stderr)


def test_a_bad_key_is_not_shown() -> None:
    refused = headrace("run", "ingest", HEADRACE_QDRANT_API_KEY="secret", HEADRACE_EPOCH_S="x")
    assert "secret" not in refused.stderr


def test_an_unknown_flow_is_a_usage_error_that_lists_those_there_are() -> None:
    refused = headrace("run", "digest")
    assert refused.returncode == 2
    assert "'ingest', 'extract', 'embed', 'index', 'answer'" in refused.stderr


def test_an_unreachable_broker_is_one_line_and_exit_code_1_whatever_the_command() -> None:
    commands = (["run", "ingest"], ["dlq", "list"], ["dlq", "show", LETTER], ["dlq", "redrive", "--everything"])
    with socket.socket() as taken, ThreadPoolExecutor() as pool:  # at once: each asks for ten seconds
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else can take the port
        bootstrap = f"127.0.0.1:{taken.getsockname()[1]}"
        told = [[*command, "--bootstrap", bootstrap] for command in (*commands, ["jobs", "show", "q-1"])]
        for command, refused in zip(told, pool.map(lambda arguments: headrace(*arguments), told), strict=True):
            assert refused.returncode == 1, command
            assert bootstrap in only_line(refused.stderr), command


@pytest.mark.parametrize("flow", ["ingest", "answer"])
def test_the_graph_needs_no_broker_and_no_model(flow: str) -> None:
    drawn = headrace("run", flow, "--graph")
    assert drawn.returncode == 0
    assert drawn.stdout.startswith("flowchart TD")
    assert f"{flow}.dlq" in drawn.stdout


def test_submitting_what_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    refused = headrace("submit", "documents", str(tmp_path / "none.pdf"), "--bootstrap", "127.0.0.1:1")
    assert refused.returncode == 2
    assert "none.pdf" in refused.stderr


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`headrace up`, ready, and its broker's address."""
    with subprocess.Popen(
        [
            "sh",
            "-c",
            "trap '' INT; exec \"$@\"",
            "sh",
            sys.executable,
            "-m",
            "cli.main",
            "up",
        ],  # as in a background job
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HEADRACE_DATA_DIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        bootstrap = ""
        for line in process.stdout:
            if "export HEADRACE_KAFKA_BOOTSTRAP=" in line:
                bootstrap = line.strip().partition("=")[2]
            if "Ctrl-C" in line:
                break
        try:
            yield process, bootstrap
        finally:
            process.kill()


def is_gone(bootstrap: str) -> bool:
    host, _, port = bootstrap.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def test_ctrl_c_ends_up_and_all_its_processes(up: tuple["subprocess.Popen[str]", str]) -> None:
    process, bootstrap = up
    asked = headrace("submit", "request", "Who keeps the sluice?", "--bootstrap", bootstrap)
    assert asked.returncode == 0, asked.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert is_gone(bootstrap)


def test_a_second_up_in_a_directory_is_refused_and_kill_9_of_the_first_frees_it(
    up: tuple["subprocess.Popen[str]", str], tmp_path: Path
) -> None:
    process, bootstrap = up
    refused = headrace("up", HEADRACE_DATA_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert "already runs in" in only_line(refused.stderr)
    process.kill()
    deadline = time.monotonic() + 60
    while not is_gone(bootstrap):
        assert time.monotonic() < deadline, "the broker outlived its parent"
        time.sleep(0.05)


def test_flows_that_cannot_open_the_index_end_with_one_clear_line(tmp_path: Path) -> None:
    """Found by a second `up`: the process aborted at its end, over a lock that a daemon thread held."""
    index = EdgeIndex(tmp_path / "vectors")
    try:
        with EmbeddedKafka() as kafka:
            kafka.create_topics(["documents.uploaded", "documents.uploaded.dlq"])
            with subprocess.Popen(
                [sys.executable, "-m", "cli.main", "run", "ingest", "--until-stdin-closes"],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"HEADRACE_DATA_DIR": str(tmp_path), "HEADRACE_KAFKA_BOOTSTRAP": kafka.bootstrap},
            ) as process:
                assert process.wait(90) == 1
                assert process.stderr is not None
                assert "HEADRACE_QDRANT_URL" in only_line(process.stderr.read())
    finally:
        asyncio.run(index.close())
