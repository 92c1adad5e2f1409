"""What `headrace dlq` refuses before it asks a broker, and what it says without one."""

import socket
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from cli.dlq import dlq
from cli.text import columns, cut, printable
from tests.headrace_process import headrace

ID = "cbfa0eb3-5dd9-583b-9205-8f7c0ab1bbd2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["redrive"], "--everything: one of the three"),
        (["redrive", "--everything", "--tenant", "acme"], "--everything: one of the three"),
        (["redrive", ID, "--tenant", "acme"], "--everything: one of the three"),
        (["redrive", "--everything", "--rate", "0"], "--rate"),
        (["redrive", "--everything", "--max-redrives", "0"], "--max-redrives"),
        (["redrive", "abc"], "at least the first 6 characters"),
        (["show", "abc"], "at least the first 6 characters"),
        (["show", "not-an-id"], "give a dead letter's id"),
        (["list", "--since", "yesterday"], "'yesterday': a time with an offset"),
        (["list", "--since", "2026-01-31T12:00:00"], "a time with an offset"),
        (["list", "--since", "999999w"], "a time with an offset"),
        (["list", "--error-class", "fatal"], "--error-class"),
        (["list", "--limit", "0"], "--limit"),
        (["list"], "HEADRACE_KAFKA_BOOTSTRAP is missing"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_KAFKA_BOOTSTRAP", raising=False)
    refused = CliRunner().invoke(dlq, arguments)
    assert refused.exit_code == 2
    assert says in refused.stderr


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses, and that nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("arguments", [["list"], ["show", ID], ["redrive", "--everything"]])
def test_an_unreachable_broker_is_one_line_within_15_seconds(arguments: list[str], nobody: str) -> None:
    began = time.monotonic()
    refused = headrace("dlq", *arguments, "--bootstrap", nobody)
    assert time.monotonic() - began < 15
    assert refused.returncode == 1
    assert nobody in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_what_strangers_sent_cannot_command_a_terminal() -> None:
    assert printable("a\x1b[31m\r\u009b\ud800é") == r"a\x1b[31m\r\x9b\ud800é"


def test_columns_are_cut_to_the_width_and_wrap_where_it_is_narrow() -> None:
    rows = [("ID", "MESSAGE"), ("abc", "x" * 100)]
    assert list(columns(rows, width=50)) == ["ID   MESSAGE", f"abc  {'x' * 44}…"]
    assert list(columns(rows, width=20)) == ["ID", "    MESSAGE", "abc", f"    {'x' * 15}…"]
    assert cut("whole", 5) == "whole"
