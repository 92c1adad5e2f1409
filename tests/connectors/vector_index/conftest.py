"""Points to write, and every index that the contract holds for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from uuid import NAMESPACE_URL, uuid4, uuid5

import numpy as np
import pytest

from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point, VectorIndex
from connectors.vector_index.qdrant import IN_MEMORY, QdrantIndex

DIMENSIONS = 8


class MakePoint(Protocol):
    def __call__(
        self, ordinal: int, *, tenant: str = "acme", document_id: str = "report", text: str | None = None
    ) -> Point: ...


@pytest.fixture
def unit() -> Callable[[int], bytes]:
    """A unit vector by seed."""

    def make(seed: int) -> bytes:
        vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
        return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()

    return make


@pytest.fixture
def point(unit: Callable[[int], bytes]) -> MakePoint:
    """A point whose id follows from tenant, document and ordinal, and its vector from the ordinal."""

    def make(ordinal: int, *, tenant: str = "acme", document_id: str = "report", text: str | None = None) -> Point:
        return Point(
            id=str(uuid5(NAMESPACE_URL, f"{tenant}/{document_id}/{ordinal}")),
            tenant=tenant,
            document_id=document_id,
            uri=f"file:///{document_id}.md" if ordinal % 2 else None,
            ordinal=ordinal,
            label=f"page {ordinal}" if ordinal % 2 else None,
            text=f"chunk {ordinal}" if text is None else text,
            vector=unit(ordinal),
        )

    return make


@pytest.fixture
def collection() -> str:
    """A name of its own for each test, so that a server can be shared."""
    return f"test-{uuid4()}"


@pytest.fixture(params=["edge", "memory", "server"])
def new_index(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], VectorIndex]:
    """Make the index under test; each of them keeps the contract."""
    url = os.environ.get("HEADRACE_TEST_QDRANT_URL")
    match request.param:
        case "edge":
            return lambda: EdgeIndex(tmp_path / "vectors")
        case "memory":
            return lambda: QdrantIndex(IN_MEMORY)
        case _ if url:
            return lambda: QdrantIndex(url)
    pytest.skip("HEADRACE_TEST_QDRANT_URL names no Qdrant server")
