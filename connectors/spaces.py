"""Which model makes a collection's vectors, and where they lie.

Every model has a collection of its own in the index; the one that serves readers is found by an alias, so that another
model can be filled up beside it and then take over at once, for every process (`headrace reindex`).
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from connectors.embedder.port import Embedder
from connectors.vector_index.port import VectorIndex
from schemas.errors import Fatal

FRESH_S = 2.0
"""How long a process may go on with the model that has served so far."""


@dataclass(frozen=True)
class Space:
    """An embedding space: the model that makes the vectors, and the collection of the index that holds them."""

    embedder: Embedder
    held_in: str


class Spaces(Protocol):
    """The space of each collection."""

    async def serving(self, collection: str, *, fresh_s: float = FRESH_S) -> str | None:
        """What holds the vectors that readers find; None for a new collection. Known for at most `fresh_s`."""
        ...

    async def of(self, collection: str) -> Space:
        """The space that serves a collection; for a new one, that of the default model.

        Raises what the index raises; Fatal if its model is not among ours.
        """
        ...


def held_in(collection: str, model: str) -> str:
    """The collection of the index that holds the vectors of one model."""
    return f"{collection}--{sha256(model.encode()).hexdigest()[:12]}"


class OneSpace(Spaces):
    """A process that has no index to ask: all collections are of one model."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def serving(self, collection: str, *, fresh_s: float = FRESH_S) -> str | None:
        """As far as is known here."""
        del fresh_s
        return held_in(collection, self._embedder.model)

    async def of(self, collection: str) -> Space:
        """Always that model's."""
        return Space(self._embedder, held_in(collection, self._embedder.model))


class IndexedSpaces(Spaces):
    """As the index's aliases say. `models`: the first is the default; each is loaded, once, when it is needed."""

    def __init__(self, vectors: VectorIndex, models: Sequence[Callable[[], Embedder]]) -> None:
        self._vectors = vectors
        self._models = models
        self._loading: list[asyncio.Task[Embedder]] = []
        self._known: dict[str, tuple[float, str]] = {}  # by collection: when it was asked for, and what serves it

    async def serving(self, collection: str, *, fresh_s: float = FRESH_S) -> str | None:
        """Asks the index if its last answer is older."""
        asked_at, name = self._known.get(collection, (-math.inf, ""))
        if time.monotonic() - asked_at < fresh_s:
            return name
        now = time.monotonic()
        found = await self._vectors.serving(collection)
        if found is not None:
            self._known[collection] = (now, found)
        return found

    async def of(self, collection: str) -> Space:
        """See Spaces."""
        serving = await self.serving(collection)
        for number in range(len(self._models)):
            embedder = await self._model(number)
            name = held_in(collection, embedder.model)
            if serving in (None, name):
                return Space(embedder, name)
        models = ", ".join([(await self._model(number)).model for number in range(len(self._models))])
        raise Fatal(
            f"collection {collection!r} is served by {serving}, whose model is none of {models}: "
            "name it in HEADRACE_EMBED_MODELS too"
        )

    async def _model(self, number: int) -> Embedder:
        """Loaded one after the other; whoever stops to wait for it does not stop the loading."""
        while len(self._loading) <= number:
            if self._loading:
                await asyncio.shield(self._loading[-1])
            if len(self._loading) <= number:
                load = self._models[len(self._loading)]
                self._loading.append(asyncio.create_task(asyncio.to_thread(load)))
        return await asyncio.shield(self._loading[number])
