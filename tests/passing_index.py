"""An index that passes everything on to another one: what a test's own index changes stands alone in it."""

from collections.abc import AsyncIterator, Sequence

from connectors.vector_index.port import DocumentState, Hit, Point, PointState, VectorIndex


class PassingIndex(VectorIndex):
    """The same as `inner`."""

    def __init__(self, inner: VectorIndex) -> None:
        self.inner = inner

    async def open(self, collection: str, dimensions: int) -> None:
        await self.inner.open(collection, dimensions)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        await self.inner.upsert(collection, points)

    async def show(self, collection: str, ids: Sequence[str], *, tenant: str, revision: int) -> None:
        await self.inner.show(collection, ids, tenant=tenant, revision=revision)

    async def delete_document(
        self, collection: str, *, tenant: str, document_id: str, keep: frozenset[str] = frozenset()
    ) -> None:
        await self.inner.delete_document(collection, tenant=tenant, document_id=document_id, keep=keep)

    async def switch(
        self, collection: str, ids: Sequence[str], *, tenant: str, document_id: str, revision: int, keep: frozenset[str]
    ) -> None:
        await self.inner.switch(collection, ids, tenant=tenant, document_id=document_id, revision=revision, keep=keep)

    async def states(self, collection: str, *, tenant: str, document_id: str) -> tuple[PointState, ...]:
        return await self.inner.states(collection, tenant=tenant, document_id=document_id)

    async def search(self, collection: str, vector: bytes, *, tenant: str, limit: int) -> tuple[Hit, ...]:
        return await self.inner.search(collection, vector, tenant=tenant, limit=limit)

    async def list_document(self, collection: str, *, tenant: str, document_id: str) -> tuple[Point, ...]:
        return await self.inner.list_document(collection, tenant=tenant, document_id=document_id)

    def every_state(self, collection: str) -> AsyncIterator[DocumentState]:
        return self.inner.every_state(collection)

    async def serve(self, alias: str, collection: str) -> None:
        await self.inner.serve(alias, collection)

    async def serving(self, alias: str) -> str | None:
        return await self.inner.serving(alias)

    async def count(self, collection: str) -> int:
        return await self.inner.count(collection)

    async def close(self) -> None:
        await self.inner.close()
