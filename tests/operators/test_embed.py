"""Documents are embedded however many share the model, and what was embedded is kept."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from connectors.embedder.batcher import Batcher, Model, Pass, Rows
from connectors.embedder.cache import CachedEmbedder
from connectors.embedder.port import Embedder
from operators import embed
from operators.chunk import Chunk, ChunkedDocument
from operators.embed import EMBED, embed_chunks
from schemas.documents import DocumentEmbedded, DocumentExtracted
from schemas.errors import Retryable
from tests.chaos.victim import HashEmbedder

BOOKS, CHUNKS = 16, 96


@dataclass
class Done(Pass):
    count: int

    def ready(self) -> bool:
        return True

    def rows(self) -> Rows:
        return np.full((self.count, 16), 0.25, np.float32)


@dataclass
class SlowModel(Model[list[str]]):
    """Embeds 1,000 texts a second."""

    embedded: list[str] = field(default_factory=list)

    def count_tokens(self, text: str) -> int:
        return len(text)

    def prepare(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def launch(self, prepared: list[str]) -> Done:
        time.sleep(len(prepared) / 1_000)
        self.embedded += prepared
        return Done(len(prepared))

    def ran_out_of_memory(self, error: BaseException) -> bool:  # noqa: ARG002
        return False


class Batched(HashEmbedder):
    def __init__(self, model: SlowModel) -> None:
        self._batcher = Batcher(model, dimensions=16, batch_tokens=80)

    async def embed(self, texts: Sequence[str]) -> Rows:
        return await self._batcher.embed(texts)

    async def close(self) -> None:
        await self._batcher.close()


@asynccontextmanager
async def remembering(inner: Embedder, directory: Path) -> AsyncIterator[CachedEmbedder]:
    cached = CachedEmbedder(inner, directory / "embeddings.sqlite", max_bytes=10_000_000)
    try:
        yield cached
    finally:
        await cached.close()


def book(number: int, chunks: int = CHUNKS) -> ChunkedDocument:
    document = DocumentExtracted.model_validate({"document_id": f"book {number}", "job_id": f"job {number}"})
    return ChunkedDocument(document, tuple(Chunk(n, 0, 8, None, f"{number:03} {n:04}") for n in range(chunks)))


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> float:
    """An attempt's limit where 600 s are 0.6: of 1,536 chunks at 1,000 a second none fits, a round of slices does."""
    monkeypatch.setattr(embed, "SLICE_TIMEOUT_S", embed.SLICE_TIMEOUT_S / 1_000)
    monkeypatch.setattr(embed, "SLICE_TEXTS", 8)
    return EMBED.timeout_s / 1_000


def test_books_that_share_the_model_have_time_as_long_as_each_makes_progress(scaled: float, tmp_path: Path) -> None:
    model = SlowModel()

    async def attempt(number: int, embedder: Embedder) -> DocumentEmbedded:
        async with asyncio.timeout(scaled):
            return await embed_chunks(book(number), embedder)

    async def run() -> list[DocumentEmbedded]:
        async with remembering(Batched(model), tmp_path) as embedder:
            return await asyncio.gather(*(attempt(number, embedder) for number in range(BOOKS)))

    embedded = asyncio.run(run())
    assert [len(document.chunks or ()) for document in embedded] == [CHUNKS] * BOOKS
    assert len(model.embedded) == BOOKS * CHUNKS


class Stalling(HashEmbedder):
    """Answers `answers` calls, then none any more."""

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.embedded: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Rows:
        if self.answers == 0:
            await asyncio.Event().wait()
        self.answers -= 1
        self.embedded += texts
        return await super().embed(texts)


def test_a_model_that_stalls_is_a_failed_attempt_and_the_next_one_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "SLICE_TIMEOUT_S", 0.2)
    model = Stalling(answers=2)

    async def run() -> DocumentEmbedded:
        async with remembering(model, tmp_path) as embedder:
            with pytest.raises(Retryable, match=r"hash-1 embedded no 64 chunks within 0\.2 s, of 200 of which 128"):
                await embed_chunks(book(0, 200), embedder)
            model.answers = 10
            return await embed_chunks(book(0, 200), embedder)

    embedded = asyncio.run(run())
    assert len(embedded.chunks or ()) == 200
    assert len(model.embedded) == len(set(model.embedded)) == 200
