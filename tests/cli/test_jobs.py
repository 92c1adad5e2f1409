"""What `headrace jobs` refuses before it asks a broker."""

import socket

import pytest
from click.testing import CliRunner

from cli.jobs import jobs
from tests.headrace_process import headrace


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["show"], "Missing argument 'ID'"), (["show", "q-1"], "HEADRACE_KAFKA_BOOTSTRAP is missing")],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_KAFKA_BOOTSTRAP", raising=False)
    refused = CliRunner().invoke(jobs, arguments)
    assert refused.exit_code == 2
    assert says in refused.stderr


def test_an_unreachable_broker_is_one_line() -> None:
    with socket.socket() as taken:  # bound and not listening: refuses, and nobody else can take the port
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = headrace("jobs", "show", "q-1", "--bootstrap", nobody)
    assert refused.returncode == 1
    assert nobody in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
