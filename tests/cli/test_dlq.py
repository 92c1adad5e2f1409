"""What `headrace dlq` refuses before it asks a broker, and what it says without one."""

import pytest
from click.testing import CliRunner

from cli.dlq import dlq
from cli.text import columns, cut, printable

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


def test_what_strangers_sent_cannot_command_a_terminal() -> None:
    assert printable("a\x1b[31m\r\u009b\ud800é") == r"a\x1b[31m\r\x9b\ud800é"


def test_columns_are_cut_to_the_width_and_wrap_where_it_is_narrow() -> None:
    rows = [("ID", "MESSAGE"), ("abc", "x" * 100)]
    assert list(columns(rows, width=50)) == ["ID   MESSAGE", f"abc  {'x' * 44}…"]
    assert list(columns(rows, width=20)) == ["ID", "    MESSAGE", "abc", f"    {'x' * 15}…"]
    assert cut("whole", 5) == "whole"
