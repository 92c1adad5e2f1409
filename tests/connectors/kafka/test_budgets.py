"""The budgets that a start reads."""

from datetime import UTC, datetime, timedelta
from unittest.mock import MagicMock

import pytest

from connectors.kafka import budgets
from connectors.kafka.budgets import read_budgets
from connectors.kafka.record import Record
from schemas.budgets import BudgetChanged

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def read(monkeypatch: pytest.MonkeyPatch, *written: tuple[int, bytes]) -> dict[str, BudgetChanged]:
    """What is known at the start if these were written, each so many hours after T0."""
    records = [
        Record("budgets.config", 0, offset, b"acme", value, (), T0 + timedelta(hours=hours))
        for offset, (hours, value) in enumerate(written)
    ]
    reader = MagicMock()
    reader.return_value.__enter__.return_value.records.return_value = records
    monkeypatch.setattr(budgets, "TopicReader", reader)
    return read_budgets("nowhere:9092")


def test_a_budget_that_does_not_say_when_has_the_time_of_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    known = read(monkeypatch, (1, b'{"tenant": "acme", "max_deferred": 1}'), (2, b'{"tenant": "acme"}'))
    assert known["acme"].changed_at == T0 + timedelta(hours=2)


def test_of_all_versions_the_one_that_was_decided_last_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = read(
        monkeypatch,
        (1, b'{"tenant": "acme", "max_deferred": 1, "changed_at": "2026-01-01T00:30:00Z"}'),
        (2, b'{"tenant": "acme", "max_deferred": 2, "changed_at": "2026-01-01T00:10:00Z"}'),
        (3, b'{"tenant": 7}'),
    )
    assert known["acme"].max_deferred == 1


def test_a_tombstone_has_the_time_of_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    known = read(monkeypatch, (1, b'{"tenant": "acme", "windows": []}'), (2, b""))
    assert (known["acme"].windows, known["acme"].changed_at) == (None, T0 + timedelta(hours=2))
