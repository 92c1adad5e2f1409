"""The port to the vector index: points in, hits out, one collection per embedding space."""

from collections.abc import Sequence
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


class VectorIndex(Protocol):
    """Guarantee: when a write returns, it survives kill -9 of this process. Writes are idempotent.

    Every method raises Retryable when the index is out of reach, and Fatal when it refuses us (wrong key, another
    vector size than the collection's). `open` raises Poison for a name that no collection can have.
    """

    async def open(self, collection: str, dimensions: int) -> None:
        """Create the collection (cosine distance) if it is missing; Fatal if it has another number of dimensions."""
        ...

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; those with the same id are replaced."""
        ...

    async def delete_document(
        self, collection: str, *, tenant: str, document_id: str, keep: frozenset[str] = frozenset()
    ) -> None:
        """Delete the points of one tenant's document, except those whose ids are in `keep`."""
        ...

    async def search(self, collection: str, vector: bytes, *, tenant: str, limit: int) -> tuple[Hit, ...]:
        """The `limit` nearest points of that tenant, best first; empty if the collection does not exist."""
        ...

    async def list_document(self, collection: str, *, tenant: str, document_id: str) -> tuple[Point, ...]:
        """All points of one document, by ordinal, vectors included."""
        ...

    async def count(self, collection: str) -> int:
        """Points in the collection, exact; 0 if it does not exist."""
        ...

    async def close(self) -> None:
        """Flush and let go of the index."""
        ...
