"""Fixtures: the embedded broker, and relay flows as processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.kafka.embedded import EmbeddedKafka
from tests.kafka.relay import Relay, relays


@pytest.fixture
def embedded() -> Iterator[EmbeddedKafka]:
    """An empty broker of the test's own."""
    with EmbeddedKafka() as broker:
        yield broker


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Make a relay between two topics."""
    with relays(tmp_path) as make:
        yield make
