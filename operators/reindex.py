"""A collection under another model: filled up beside the one that serves, until it takes over.

Guarantee: readers find every document at any moment, in one of the two. What is filled up already is not done again, so
a run that was cut short, before the switch or after it, is resumed by running it again, and the former model takes over
again at the price of what has changed since. The former collection stays as it is. State: none but the index itself,
where an alias says what a switch has not yet brought everything over from. No Bytewax: a command runs this.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from connectors.embedder.port import Embedder
from connectors.spaces import FRESH_S, held_in
from connectors.vector_index.port import PointState, VectorIndex
from operators.embed import embed_again
from operators.index import DELETED, replace_document
from schemas.documents import DocumentEmbedded, EmbeddedChunk
from schemas.errors import Fatal, HeadraceError, Retryable

AT_ONCE = 16  # documents; the embedder batches their chunks
PASSES = 20  # over what has changed meanwhile; the rest is done right after the switch
NAMED = 5  # documents, in a message
SETTLE_S = 5 * FRESH_S
"""How long after the switch a process may go on under the former model; one that writes even later does it twice."""

Document = tuple[str, str]  # tenant and document_id


@dataclass(frozen=True)
class Held:
    """What a collection holds of one document. A delete that a crash cut short has left chunks."""

    revision: int = -1
    chunks: int = 0
    children: int = 0
    deleted: bool = False

    def and_point(self, point: PointState) -> "Held":
        """The same with one more point."""
        if not point.visible and point.version != DELETED:
            return self
        revision, deleted = max((self.revision, self.deleted), (point.revision, point.version == DELETED))
        return Held(revision, self.chunks + point.visible, max(self.children, point.children), deleted)


Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Shows a pass over so many documents; what it gives is called for each that is done."""


async def documents_in(name: str, vectors: VectorIndex) -> dict[Document, Held]:
    """What readers of a collection find, and what was deleted from it."""
    found: dict[Document, Held] = {}
    async for state in vectors.every_state(name):
        document = (state.tenant, state.document_id)
        found[document] = found.get(document, Held()).and_point(state.point)
    return found


def outdated(source: Mapping[Document, Held], target: Mapping[Document, Held]) -> list[Document]:
    """Documents of which `target` has less than, or something older than, `source`."""
    found = []
    for document, held in source.items():
        there, wanted = target.get(document, Held()), replace(held, chunks=0) if held.deleted else held
        if there != wanted and there.revision <= wanted.revision:
            found.append(document)
    return found


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
        self._former = f"{collection}--from"  # an alias of what is still to be settled from; of what serves, if nothing
        self.copied = 0

    async def run(self) -> bool:
        """Fill up and switch; False if that model serves already.

        Raises Fatal if there is no such collection, Poison for a chunk that the model does not read whole, and what
        index and embedder raise.
        """
        source = await serving_now(self._collection, self._vectors)
        former = await self._vectors.serving(self._former)
        if former is None:
            former = source
        if source == former == self._target:
            return False
        if source == self._target:  # stopped while it settled
            await self._settle(former)
            return True
        if former not in (source, self._target):
            raise Fatal(
                f"the model that serves collection {self._collection!r} has not taken everything over from the one "
                "before it: run the last reindex again first, or go back to that model"
            )
        await self._vectors.open(self._target, self._embedder.dimensions)
        for _ in range(PASSES):
            if not await self._fill(source):
                break
        await self._vectors.serve(self._former, source)
        await self._vectors.serve(self._collection, self._target)
        await self._settle(source)
        return True

    async def serving(self) -> str:
        """Which model serves, as a person is told."""
        switched = await self._vectors.serving(self._collection) == self._target
        return self._embedder.model if switched else "the former model"

    async def _settle(self, source: str) -> None:
        """Bring over what was still written under the former model. Raises Retryable if that comes to no end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settle_s
        for _ in range(PASSES):  # which take longer than settling, if nothing is left to do
            began = loop.time()
            left = await self._fill(source)
            if not left and began >= deadline:
                await self._vectors.serve(self._former, self._target)
                return
            await asyncio.sleep(min(FRESH_S, self._settle_s))
        if left:
            named = ", ".join(f"{document_id} (tenant {tenant})" for tenant, document_id in left[:NAMED])
            raise Retryable(
                f"{self._collection} is served by {self._embedder.model}, but {len(left)} of its documents still "
                f"differ from {source}, which served before: upload again {named}{', ...' if len(left) > NAMED else ''}"
            )

    async def _fill(self, source: str) -> list[Document]:
        """One pass; which documents were not up to date."""
        todo = outdated(await documents_in(source, self._vectors), await documents_in(self._target, self._vectors))
        if not todo:
            return []
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
            except ExceptionGroup as failed:  # not `except*`: before Python 3.11.4 what it raises is a group again
                ours, others = failed.split(HeadraceError)
                if ours is None or others is not None:
                    raise
                raise ours.exceptions[0] from None
        return todo

    async def _copy(self, source: str, document: Document) -> None:
        tenant, document_id = document
        states = await self._vectors.states(source, tenant=tenant, document_id=document_id)
        held = Held()
        for state in states:
            held = held.and_point(state)
        if held == Held():
            return
        points = await self._vectors.list_document(source, tenant=tenant, document_id=document_id)
        points = () if held.deleted else points
        former = DocumentEmbedded(
            job_id=f"reindex {self._collection}",
            tenant=tenant,
            document_id=document_id,
            collection=self._collection,
            op="upsert" if points else "delete",
            uri=points[0].uri if points else None,
            revision=held.revision,
            children=held.children,
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
