"""The real model, loaded once for all tests of a run."""

import asyncio
from collections.abc import Iterator

import pytest

from connectors.embedder.sentence_transformer import SentenceTransformerEmbedder


@pytest.fixture(scope="session")
def embedder() -> Iterator[SentenceTransformerEmbedder]:
    """The default model, as the command loads it."""
    embedder = SentenceTransformerEmbedder()
    yield embedder
    asyncio.run(embedder.close())
