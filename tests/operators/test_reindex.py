"""Another model takes over a collection: whole, resumed, rolled back, and while documents come and go."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.embedder.batcher import Rows
from connectors.spaces import IndexedSpaces, held_in
from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point, VectorIndex
from connectors.vector_index.qdrant import IN_MEMORY, QdrantIndex
from operators.embed import embed_again
from operators.index import place_document, replace_document
from operators.reindex import Reindex
from schemas.documents import DocumentEmbedded, EmbeddedChunk
from schemas.errors import Fatal, Poison, Retryable
from schemas.event import derive_id
from tests.chaos.victim import HashEmbedder


class Model(HashEmbedder):
    def __init__(self, model: str, *, max_tokens: int = 256, fails_after: int = 1_000_000) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.texts: list[str] = []
        self._fails_after = fails_after

    async def embed(self, texts: Sequence[str]) -> Rows:
        if len(self.texts) >= self._fails_after:
            raise Retryable("the model went away")
        self.texts += texts
        rotated = np.roll(await super().embed(texts), 1 if self.model == "old" else 5, axis=1)
        return np.asarray(rotated, dtype=np.float32)


OLD, NEW = held_in("documents", "old"), held_in("documents", "new")


def version(document_id: str, revision: int, *texts: str) -> DocumentEmbedded:
    """By no model yet; without texts a delete."""
    chunks = tuple(
        EmbeddedChunk(chunk_id=derive_id(document_id, text), ordinal=n, text=text, vector=b"")
        for n, text in enumerate(texts)
    )
    return DocumentEmbedded(
        job_id="j",
        document_id=document_id,
        op="upsert" if texts else "delete",
        revision=revision,
        model="none",
        dimensions=16,
        chunks=chunks,
    )


async def write(vectors: VectorIndex, model: Model, document_id: str, revision: int, *texts: str) -> None:
    """As a process does that has not noticed yet what serves."""
    await replace_document(await embed_again(version(document_id, revision, *texts), model), vectors)
    if await vectors.serving("documents") is None:
        await vectors.serve("documents", held_in("documents", model.model))


async def texts(vectors: VectorIndex, model: Model) -> dict[str, str]:
    """What a reader finds for a question in the words of each text: the text itself, and its document."""
    space = await IndexedSpaces(vectors, [lambda: model]).of("documents")
    found: dict[str, str] = {}
    for text in ("one", "two", "three", "four"):
        (row,) = await space.embedder.embed([text])
        hits = await vectors.search(space.held_in, row.astype("<f4").tobytes(), tenant="default", limit=9)
        found |= {hit.text: hit.document_id for hit in hits if hit.text == text and hit.score > 0.999}
    return found


@contextmanager
def silent(documents: int) -> Iterator[Callable[[], None]]:
    assert documents > 0
    yield lambda: None


@pytest.fixture(params=["edge", "memory"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], VectorIndex]:
    return lambda: EdgeIndex(tmp_path / "vectors") if request.param == "edge" else QdrantIndex(IN_MEMORY)


async def filled(vectors: VectorIndex, old: Model) -> None:
    await write(vectors, old, "a", 1, "one", "two")
    await write(vectors, old, "b", 1, "three")
    await write(vectors, old, "c", 1, "four")
    await write(vectors, old, "c", 2)


def test_a_new_model_takes_over_every_document_and_remembers_what_was_deleted(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await filled(vectors, old)
        work = Reindex("documents", new, vectors, silent, settle_s=0.0)
        assert await work.run()
        assert work.copied == 3
        assert await vectors.serving("documents") == NEW
        assert await texts(vectors, new) == {"one": "a", "two": "a", "three": "b"}
        await write(vectors, new, "c", 1, "four")  # comes late, under the new model too
        assert "four" not in await texts(vectors, new)
        assert not await Reindex("documents", new, vectors, silent, settle_s=0.0).run()
        await vectors.close()

    asyncio.run(run())


def test_a_run_that_was_cut_short_leaves_the_old_model_serving_and_is_resumed(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old = index(), Model("old")
        for number in range(30):
            await write(vectors, old, f"d{number}", 1, f"text {number}")
        cut = Model("new", fails_after=20)
        with pytest.raises(Retryable, match="went away"):
            await Reindex("documents", cut, vectors, silent, settle_s=0.0).run()
        assert await vectors.serving("documents") == OLD
        resumed = Model("new")
        assert await Reindex("documents", resumed, vectors, silent, settle_s=0.0).run()
        assert 10 <= len(resumed.texts) < 30
        assert await vectors.count("documents") == 30
        await vectors.close()

    asyncio.run(run())


def test_the_former_model_takes_over_again_at_the_price_of_what_has_changed(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await filled(vectors, old)
        await Reindex("documents", new, vectors, silent, settle_s=0.0).run()
        await write(vectors, new, "a", 5, "two", "four")
        await write(vectors, new, "b", 6)
        old.texts.clear()
        assert await Reindex("documents", old, vectors, silent, settle_s=0.0).run()
        assert sorted(old.texts) == ["four", "two"]
        assert await texts(vectors, old) == {"two": "a", "four": "a"}
        await vectors.close()

    asyncio.run(run())


def test_what_is_written_under_the_old_model_while_it_goes_on_is_not_lost(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await filled(vectors, old)

        @contextmanager
        def meanwhile(documents: int) -> Iterator[Callable[[], None]]:
            del documents
            yield lambda: None
            changes.append(1)

        changes: list[int] = []
        work = Reindex("documents", new, vectors, meanwhile, settle_s=0.0)
        switch = vectors.serve

        async def late(alias: str, collection: str) -> None:
            await write(vectors, old, "b", 9, "four")  # a process that has not noticed yet
            await switch(alias, collection)
            await write(vectors, old, "a", 9, "one")

        vectors.serve = late  # type: ignore[method-assign]
        assert await work.run()
        assert await texts(vectors, new) == {"one": "a", "four": "b"}
        await vectors.close()

    asyncio.run(run())


def test_a_write_that_ends_long_after_the_switch_is_found_under_the_new_model(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await filled(vectors, old)
        began, switched, switch = asyncio.Event(), asyncio.Event(), vectors.switch

        async def slow(collection: str, ids: Sequence[str], **fields: Any) -> None:
            if collection == OLD:
                began.set()
                await switched.wait()
            await switch(collection, ids, **fields)

        vectors.switch = slow  # type: ignore[method-assign]
        document = await embed_again(version("late", 9, "four"), old)
        spaces = IndexedSpaces(vectors, [lambda: old, lambda: new])
        writing = asyncio.create_task(place_document(document, vectors, spaces))
        await began.wait()
        assert await Reindex("documents", new, vectors, silent, settle_s=0.0).run()
        switched.set()
        assert (await writing).indexed.model == "new"
        assert (await texts(vectors, new))["four"] == "late"
        await vectors.close()

    asyncio.run(run())


async def gone(*_: object, **__: object) -> None:
    raise Retryable("killed")


def test_a_delete_that_was_cut_short_is_copied_as_a_delete_and_does_not_hold_the_reindex_up(
    index: Callable[[], VectorIndex],
) -> None:
    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await filled(vectors, old)
        switch, vectors.switch = vectors.switch, gone  # type: ignore[method-assign]
        with pytest.raises(Retryable, match="killed"):
            await write(vectors, old, "a", 5)
        work = Reindex("documents", new, vectors, silent, settle_s=0.0)
        with pytest.raises(Retryable, match="killed"):
            await work.run()  # which is cut short in the same place, in the new collection
        vectors.switch = switch  # type: ignore[method-assign]
        assert await work.run()
        assert await texts(vectors, new) == {"three": "b"}
        await vectors.close()

    asyncio.run(run())


def test_documents_that_cannot_be_brought_over_are_named_and_the_reindex_ends(
    index: Callable[[], VectorIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operators.reindex.PASSES", 2)

    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await write(vectors, old, "b", 1, "three")
        upsert = vectors.upsert

        async def differing(collection: str, points: Sequence[Point]) -> None:
            await upsert(collection, [replace(point, children=7) for point in points])

        vectors.upsert = differing  # type: ignore[method-assign]
        with pytest.raises(
            Retryable, match=r"served by new, but 1 of its documents still differ .* b \(tenant default"
        ):
            await Reindex("documents", new, vectors, silent, settle_s=0.0).run()
        await vectors.close()

    asyncio.run(run())


def test_a_reindex_that_was_stopped_while_it_settled_is_resumed_and_then_done(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old, new = index(), Model("old"), Model("new")
        await filled(vectors, old)
        work = Reindex("documents", new, vectors, silent, settle_s=600.0)
        assert await work.serving() == "the former model"
        running = asyncio.create_task(work.run())
        async with asyncio.timeout(60):
            while await vectors.serving("documents") != NEW:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await work.serving() == "new"
        await write(vectors, old, "late", 9, "four")  # by a process that has not noticed yet
        with pytest.raises(Fatal, match="has not taken everything over"):
            await Reindex("documents", Model("newer"), vectors, silent, settle_s=0.0).run()
        assert await Reindex("documents", new, vectors, silent, settle_s=0.0).run()
        assert (await texts(vectors, new))["four"] == "late"
        assert not await Reindex("documents", new, vectors, silent, settle_s=0.0).run()
        await vectors.close()

    asyncio.run(run())


def test_a_model_that_would_cut_chunks_off_is_refused_and_the_old_one_serves(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old = index(), Model("old")
        await write(vectors, old, "a", 1, "one two three four")
        with pytest.raises(Poison, match="4 tokens, and small reads at most 3"):
            await Reindex("documents", Model("small", max_tokens=3), vectors, silent, settle_s=0.0).run()
        assert await vectors.serving("documents") == OLD
        await vectors.close()

    asyncio.run(run())


def test_a_collection_that_does_not_exist_is_named(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors = index()
        with pytest.raises(Fatal, match="'documents' does not exist"):
            await Reindex("documents", Model("new"), vectors, silent, settle_s=0.0).run()
        await vectors.close()

    asyncio.run(run())


def test_a_model_that_nobody_has_at_hand_is_named(index: Callable[[], VectorIndex]) -> None:
    async def run() -> None:
        vectors, old = index(), Model("old")
        await write(vectors, old, "a", 1, "one")
        with pytest.raises(Fatal, match="HEADRACE_EMBED_MODELS"):
            await IndexedSpaces(vectors, [lambda: Model("new"), lambda: Model("newer")]).of("documents")
        both = IndexedSpaces(vectors, [lambda: Model("new"), lambda: old])
        assert (await both.of("documents")).embedder.model == "old"
        assert (await both.of("fresh")).embedder.model == "new"
        await vectors.close()

    asyncio.run(run())
