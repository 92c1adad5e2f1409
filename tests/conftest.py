"""Fixtures that every folder may use."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from connectors.event_loop import EventLoop
from connectors.kafka.port import Topics
from connectors.kafka.stop import Stop
from operators.runtime import Runtime

settings.register_profile("shared machine", deadline=None)  # wall time says nothing about a test here
settings.load_profile("shared machine")


@pytest.fixture
def runtime_on() -> Iterator[Callable[[Topics], Runtime]]:
    """Make a runtime on given topics, with a loop of its own, as a new process has."""
    with ExitStack() as stack:
        yield lambda topics: Runtime(topics, stack.enter_context(EventLoop()), Stop())
