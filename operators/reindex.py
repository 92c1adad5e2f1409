"""A collection under another model: filled up beside the one that serves, until it takes over.

Guarantee: readers find every document at any moment, in one of the two. What is filled up already is not done again, so
a run that was cut short is resumed by running it again, and the former model takes over again at the price of what has
changed since. The former collection stays as it is. State: none but the index itself. No Bytewax: a command runs this.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from connectors.embedder.port import Embedder
from connectors.spaces import FRESH_S, held_in
from connectors.vector_index.port import VectorIndex
from operators.embed import embed_again
from operators.index import DELETED, replace_document
from schemas.documents import DocumentEmbedded, EmbeddedChunk
from schemas.errors import Fatal, HeadraceError

AT_ONCE = 16  # documents; the embedder batches their chunks
PASSES = 20  # over what has changed meanwhile; the rest is done right after the switch
SETTLE_S = 5 * FRESH_S
"""How long after the switch a process may go on under the former model; one that writes even later does it twice."""

Document = tuple[str, str]  # tenant and document_id


@dataclass(frozen=True)
class Held:
    """What a collection holds of one document."""

    revision: int = -1
    chunks: int = 0
    children: int = 0
    deleted: bool = False


Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Shows a pass over so many documents; what it gives is called for each that is done."""


async def documents_in(name: str, vectors: VectorIndex) -> dict[Document, Held]:
    """What readers of a collection find, and what was deleted from it."""
    found: dict[Document, Held] = {}
    chunks: Counter[Document] = Counter()
    async for state in vectors.every_state(name):
        point, document = state.point, (state.tenant, state.document_id)
        if point.visible or point.version == DELETED:
            chunks[document] += point.visible
            known = found.get(document, Held())
            if point.revision >= known.revision:
                found[document] = Held(point.revision, 0, point.children, not point.visible)
    return {document: replace(held, chunks=chunks[document]) for document, held in found.items()}


def outdated(source: Mapping[Document, Held], target: Mapping[Document, Held]) -> list[Document]:
    """Documents of which `target` has less than, or something older than, `source`."""
    return [
        document
        for document, held in source.items()
        if (there := target.get(document, Held())) != held and there.revision <= held.revision
    ]


async def serving_now(collection: str, vectors: VectorIndex) -> str:
    """What serves a collection. Raises Fatal if nothing does."""
    source = await vectors.serving(collection)
    if source is None:
        raise Fatal(f"collection {collection!r} does not exist, or nothing was ever indexed in it")
    return source


class Reindex:
    """One collection, from the model that serves it to another one. `settle_s`: 0 where nobody else can write."""

    def __init__(
        self, collection: str, embedder: Embedder, vectors: VectorIndex, progress: Progress, *, settle_s: float
    ) -> None:
        self._settle_s = settle_s
        self._collection = collection
        self._embedder = embedder
        self._vectors = vectors
        self._progress = progress
        self._target = held_in(collection, embedder.model)
        self.copied = 0

    async def run(self) -> bool:
        """Fill up and switch; False if that model serves already.

        Raises Fatal if there is no such collection, Poison for a chunk that the model does not read whole, and what
        index and embedder raise.
        """
        source = await serving_now(self._collection, self._vectors)
        if source == self._target:
            return False
        await self._vectors.open(self._target, self._embedder.dimensions)
        for _ in range(PASSES):
            if not await self._fill(source):
                break
        await self._vectors.serve(self._collection, self._target)
        await self._settle(source)
        return True

    async def _settle(self, source: str) -> None:
        """Bring over what was still written under the former model."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settle_s
        while True:
            began = loop.time()
            if not await self._fill(source) and began >= deadline:
                return
            await asyncio.sleep(min(FRESH_S, self._settle_s))

    async def _fill(self, source: str) -> int:
        """One pass; how many documents were not up to date."""
        todo = outdated(await documents_in(source, self._vectors), await documents_in(self._target, self._vectors))
        if not todo:
            return 0
        slots = asyncio.Semaphore(AT_ONCE)
        with self._progress(len(todo)) as advance:

            async def copy(document: Document) -> None:
                async with slots:
                    await self._copy(source, document)
                    self.copied += 1
                    advance()

            try:
                async with asyncio.TaskGroup() as group:
                    for document in todo:
                        group.create_task(copy(document))
            except* HeadraceError as failed:
                raise failed.exceptions[0] from None
        return len(todo)

    async def _copy(self, source: str, document: Document) -> None:
        tenant, document_id = document
        states = await self._vectors.states(source, tenant=tenant, document_id=document_id)
        points = await self._vectors.list_document(source, tenant=tenant, document_id=document_id)
        current = [state for state in states if state.visible or state.version == DELETED]
        if not current:
            return
        former = DocumentEmbedded(
            job_id=f"reindex {self._collection}",
            tenant=tenant,
            document_id=document_id,
            collection=self._collection,
            op="upsert" if points else "delete",
            uri=points[0].uri if points else None,
            revision=max(state.revision for state in current),
            children=max(state.children for state in current),
            model=source,
            dimensions=self._embedder.dimensions,
            chunks=tuple(
                EmbeddedChunk(
                    chunk_id=point.id,
                    ordinal=point.ordinal,
                    label=point.label,
                    text=point.text,
                    vector=point.vector,
                )
                for point in points
            ),
        )
        await replace_document(await embed_again(former, self._embedder), self._vectors)
