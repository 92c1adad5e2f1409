"""The index step alone: what readers find while versions come in any order and every write may fail."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from random import Random
from uuid import uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.spaces import held_in
from connectors.vector_index.port import Point, VectorIndex
from connectors.vector_index.qdrant import IN_MEMORY, QdrantIndex
from operators.attached import child_id
from operators.index import replace_document
from schemas.documents import DocumentEmbedded, DocumentUploaded, EmbeddedChunk
from schemas.errors import Retryable
from schemas.event import derive_id
from tests.passing_index import PassingIndex

VECTOR = b"\0\0\x80?" + b"\0" * 12  # (1, 0, 0, 0)
READER = b"\0\0\x80?" * 4


def embedded(revision: int, texts: Sequence[str]) -> DocumentEmbedded:
    """A version with a chunk per text; without any it is a delete."""
    return DocumentEmbedded(
        job_id=f"job-{revision}",
        document_id="d",
        op="upsert" if texts else "delete",
        revision=revision,
        version=f"v{revision}",
        model="m@1",
        dimensions=4,
        chunks=tuple(
            EmbeddedChunk(chunk_id=derive_id("chunk", text), ordinal=n, text=text, vector=VECTOR)
            for n, text in enumerate(texts)
        ),
    )


class Failing(PassingIndex):
    """Fails before or after the writes that it is told to, and lets a reader look after each."""

    def __init__(self, inner: VectorIndex, fails: Sequence[str | None], look: Callable[[], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._fails = list(fails)
        self._look = look

    async def _write(self, write: Coroutine[None, None, None]) -> None:
        fails = self._fails.pop(0) if self._fails else None
        if fails == "before":
            write.close()
            raise Retryable("out of reach")
        await write
        await self._look()
        if fails == "after":
            raise Retryable("the answer was lost")

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        await self._write(super().upsert(collection, points))

    async def switch(
        self, collection: str, ids: Sequence[str], *, tenant: str, document_id: str, revision: int, keep: frozenset[str]
    ) -> None:
        switching = super().switch(
            collection, ids, tenant=tenant, document_id=document_id, revision=revision, keep=keep
        )
        await self._write(switching)


HELD = held_in("documents", "m@1")
TEXTS = st.lists(st.sampled_from(["a", "b", "c", "e", "f"]), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    versions=st.lists(TEXTS, min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    fails=st.lists(st.sampled_from([None, None, None, "before", "after"]), max_size=30),
)
def test_readers_find_a_whole_version_at_any_moment_and_the_newest_at_the_end(
    versions: list[list[str]], order: Random, fails: list[str | None]
) -> None:
    """Failed attempts are tried again, as `offload` and a restart do; each version may come in any order."""
    inner = QdrantIndex(IN_MEMORY)

    async def found() -> set[str]:
        hits = await inner.search(HELD, READER, tenant="default", limit=100)
        return {hit.text for hit in hits}

    async def run() -> None:
        await inner.open(HELD, 4)
        former: set[str] = set()
        numbered = list(enumerate(versions, start=1))
        order.shuffle(numbered)
        newest = 0
        for revision, texts in numbered:
            wanted = set(texts)

            async def look(
                *, former: set[str] = former, wanted: set[str] = wanted, late: bool = revision < newest
            ) -> None:
                seen = await found()
                assert not late, "a late version wrote"
                assert seen in (former, wanted), "half of a version, or two of them"

            index = Failing(inner, fails, look)
            while True:
                try:
                    indexed = (await replace_document(embedded(revision, texts), index)).indexed
                except Retryable:
                    continue
                break
            assert indexed.superseded == (revision < newest)
            newest = max(newest, revision)
            former = set(versions[newest - 1])
            assert await found() == former
            assert indexed.chunks == len(former)
            assert await inner.count(HELD) == len(former)
        await inner.close()

    asyncio.run(run())


def test_half_of_a_new_version_is_not_found_when_the_rest_cannot_be_written() -> None:
    """A dead letter in the middle leaves the old version, whole and alone."""

    async def run() -> None:
        inner = QdrantIndex(IN_MEMORY)

        async def nothing() -> None:
            return None

        await replace_document(embedded(1, ["a", "b"]), inner)
        gave_up = Failing(inner, [None, "before"], nothing)
        with suppress(Retryable):
            await replace_document(embedded(2, ["a", "c", "e"]), gave_up)
        hits = await inner.search(HELD, READER, tenant="default", limit=9)
        assert {hit.text for hit in hits} == {"a", "b"}
        late = await replace_document(embedded(1, ["a", "b"]), inner)  # which is not late: nothing newer was shown
        assert not late.indexed.superseded
        assert len(await inner.states(HELD, tenant="default", document_id="d")) == 2
        await inner.close()

    asyncio.run(run())


def test_what_is_deleted_leaves_neither_text_nor_vector_that_anybody_finds() -> None:
    async def run() -> None:
        inner = QdrantIndex(IN_MEMORY)
        await replace_document(embedded(1, ["a", "b"]), inner)
        await replace_document(embedded(2, []), inner)
        assert await inner.search(HELD, READER, tenant="default", limit=9) == ()
        assert await inner.list_document(HELD, tenant="default", document_id="d") == ()
        assert await inner.count(HELD) == 0
        await inner.close()

    asyncio.run(run())


def test_a_document_id_of_another_tenant_is_another_document() -> None:
    async def run() -> None:
        inner = QdrantIndex(IN_MEMORY)
        mine = embedded(1, ["a"])
        stranger = mine.model_copy(update={"tenant": "rival", "chunks": (_renamed(mine),)})
        await replace_document(mine, inner)
        await replace_document(stranger, inner)
        await replace_document(embedded(2, []).model_copy(update={"tenant": "rival"}), inner)
        found = await inner.search(HELD, READER, tenant="default", limit=9)
        assert [hit.text for hit in found] == ["a"]
        assert await inner.search(HELD, READER, tenant="rival", limit=9) == ()
        await inner.close()

    asyncio.run(run())


def _renamed(document: DocumentEmbedded) -> EmbeddedChunk:
    assert document.chunks is not None
    return document.chunks[0].model_copy(update={"chunk_id": str(uuid4())})


def family(revision: int, children: int, *, deleted: bool = False) -> DocumentEmbedded:
    return embedded(revision, [] if deleted else ["a"]).model_copy(update={"children": children})


def test_attachments_that_are_no_more_are_deleted_also_when_a_crash_kept_that_from_being_said() -> None:
    async def run() -> None:
        inner = QdrantIndex(IN_MEMORY)

        async def detached(document: DocumentEmbedded) -> list[tuple[str, int | None]]:
            replaced = await replace_document(document, inner)
            assert all(each.op == "delete" and each.parent_id == "d" for each in replaced.family)
            return [(each.document_id, each.revision) for each in replaced.family]

        def ids(revision: int, *places: int) -> list[tuple[str, int | None]]:
            return [(child_id(family(1, 0), place), revision) for place in places]

        assert await detached(family(2, 3)) == []
        assert await detached(family(3, 1)) == ids(3, 1, 2)
        assert await detached(family(3, 1)) == ids(3, 1, 2)  # the replay after a crash
        assert await detached(family(1, 5)) == []  # late
        assert await detached(family(4, 0, deleted=True)) == ids(4, 0, 1, 2)
        assert await detached(family(4, 0, deleted=True)) == ids(4, 0, 1, 2)
        assert await detached(family(3, 1)) == []  # late as well
        await inner.close()

    asyncio.run(run())


def test_attachments_are_uploaded_once_their_document_is_found_and_not_for_one_that_comes_late() -> None:
    async def run() -> None:
        inner = QdrantIndex(IN_MEMORY)
        attached = DocumentUploaded(
            job_id="k", document_id=child_id(family(2, 1), 0), parent_id="d", revision=2, text="One."
        )
        document = family(2, 1).model_copy(update={"attached": (attached,)})
        failing = Failing(inner, [None, "before"], lambda: asyncio.sleep(0))
        with suppress(Retryable):
            await replace_document(document, failing)
        assert (await replace_document(document, inner)).family == (attached,)
        assert (await replace_document(document, inner)).family == (attached,)  # the replay after a crash
        await replace_document(family(3, 1), inner)
        assert (await replace_document(document, inner)).family == ()
        await inner.close()

    asyncio.run(run())
