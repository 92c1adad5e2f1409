"""What `headrace jobs` refuses before it asks a broker."""

import pytest
from click.testing import CliRunner

from cli.jobs import jobs


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
