"""The port to the vector index: points in, hits out, one collection per embedding space."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Point:
    """One embedded chunk. An upsert of the same id replaces it."""

    id: str  # uuid5 of (collection, tenant, document, chunk content, model)
    tenant: str
    document_id: str
    uri: str | None
    ordinal: int  # position of the chunk in its document, from 0
    label: str | None  # place in the document: "page 7"
    text: str
    vector: bytes  # float32, little-endian, 4 x dimensions bytes, unit length
    version: str | None = None  # of the document, as whoever wrote the point names it
    revision: int = 0  # of the document: what has a lower one is older
    children: int = 0  # documents that have been attached to its document
    visible: bool = True  # whether readers find it; one that is hidden waits to be shown, or remembers a delete


@dataclass(frozen=True)
class PointState:
    """What a writer must know of a point that is there, hidden or not."""

    id: str
    version: str | None
    revision: int
    children: int
    visible: bool


@dataclass(frozen=True)
class Hit:
    """A point found by a search, without its vector."""

    id: str
    document_id: str
    uri: str | None
    ordinal: int
    label: str | None
    text: str
    score: float  # cosine similarity, -1 to 1


@dataclass(frozen=True)
class DocumentState:
    """A point of some document of a collection."""

    tenant: str
    document_id: str
    point: PointState


class VectorIndex(Protocol):
    """Guarantee: when a write returns, it survives kill -9 of this process. Writes are idempotent.

    A collection is found under its own name, and under the alias that it serves.

    Every method raises Retryable when the index is out of reach, and Fatal when it refuses us (wrong key, another
    vector size than the collection's). `open` raises Poison for a name that no collection can have.
    """

    async def open(self, collection: str, dimensions: int) -> None:
        """Create the collection (cosine distance) if it is missing; Fatal if it has another number of dimensions."""
        ...

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; those with the same id are replaced."""
        ...

    async def show(self, collection: str, ids: Sequence[str], *, tenant: str, revision: int) -> None:
        """Let readers find a tenant's points, as part of that revision; ids that are not there are ignored."""
        ...

    async def delete_document(
        self, collection: str, *, tenant: str, document_id: str, keep: frozenset[str] = frozenset()
    ) -> None:
        """Delete the points of one tenant's document, except those whose ids are in `keep`."""
        ...

    async def switch(
        self, collection: str, ids: Sequence[str], *, tenant: str, document_id: str, revision: int, keep: frozenset[str]
    ) -> None:
        """Both, `show` and `delete_document`, as one write: this process cannot end in between."""
        ...

    async def search(self, collection: str, vector: bytes, *, tenant: str, limit: int) -> tuple[Hit, ...]:
        """The `limit` nearest visible points of that tenant, best first; empty if the collection does not exist."""
        ...

    async def list_document(self, collection: str, *, tenant: str, document_id: str) -> tuple[Point, ...]:
        """The points of one document that readers find, by ordinal, vectors included."""
        ...

    async def states(self, collection: str, *, tenant: str, document_id: str) -> tuple[PointState, ...]:
        """All points of one document, the hidden ones included, in no order."""
        ...

    def every_state(self, collection: str) -> AsyncIterator[DocumentState]:
        """All points of a collection, the hidden ones included, in no order; one that is written meanwhile may lack."""
        ...

    async def serve(self, alias: str, collection: str) -> None:
        """Let readers of `alias` find this collection, which exists, from now on; at once, for every process."""
        ...

    async def serving(self, alias: str) -> str | None:
        """The collection that serves an alias; None if none does."""
        ...

    async def count(self, collection: str) -> int:
        """Points in the collection that readers find, exact; 0 if it does not exist."""
        ...

    async def close(self) -> None:
        """Flush and let go of the index."""
        ...
