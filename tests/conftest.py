"""Fixtures that every folder may use."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from connectors.embedder.sentence_transformer import SentenceTransformerEmbedder
from connectors.event_loop import EventLoop
from connectors.kafka.port import Topics
from connectors.kafka.stop import Stop
from operators.runtime import Runtime

settings.register_profile("shared machine", deadline=None)  # wall time says nothing about a test here
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def embedder() -> Iterator[SentenceTransformerEmbedder]:
    """The default model, as the command loads it, once for all tests of a run."""
    embedder = SentenceTransformerEmbedder()
    yield embedder
    asyncio.run(embedder.close())


@pytest.fixture
def runtime_on() -> Iterator[Callable[[Topics], Runtime]]:
    """Make a runtime on given topics, with a loop of its own, as a new process has."""
    with ExitStack() as stack:
        yield lambda topics: Runtime(topics, stack.enter_context(EventLoop()), Stop())
