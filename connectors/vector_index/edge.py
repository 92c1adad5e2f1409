"""The vector index inside this process: Qdrant Edge, one directory, one shard in it per collection.

Guarantee: a write that returned is in the engine's log and flushed to disk. One process alone opens a directory; the
lock is the kernel's, so it is free again after kill -9.

The engine holds the GIL in every call, `flush()` (6 ms) included. So one thread writes: what is waiting is applied
together, flushed once, and then the thread rests. Search is exact and its time grows with the points of the tenant:
2 ms for 10,000, 7 ms for 40,000. No HNSW graph is built, since that would stop the process for 8 s per 25,000 points;
with more than some 100,000 points per tenant, use a Qdrant server. The space of deleted points is taken back when a
collection is next loaded (2 s per 75,000 points, if a fifth of them was deleted).
"""

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from filelock import FileLock, Timeout

from connectors.vector_index.payload import (
    DOCUMENT_FIELDS,
    HIDDEN_TENANT,
    STATE_FIELDS,
    TENANT,
    check_collection_name,
    check_dimensions,
    check_vector,
    is_collection_name,
    missing_collection,
    shown,
    to_document_state,
    to_floats,
    to_hit,
    to_payload,
    to_point,
    to_state,
)
from connectors.vector_index.port import DocumentState, Hit, Point, PointState, VectorIndex
from schemas.errors import Fatal, HeadraceError, Poison, Retryable

try:
    import qdrant_edge as edge
except ImportError as error:
    raise Fatal(
        "the embedded vector index needs the package qdrant-edge-py: install headrace[embedded], "
        "or set HEADRACE_QDRANT_URL to use a Qdrant server"
    ) from error

T = TypeVar("T")

_REST = 3  # times the last flush: leaves other threads three quarters of the GIL under a stream of writes
_NO_GRAPH_KB = 1_000_000_000  # segment size above which the optimizer would build an HNSW graph
_SCROLL_POINTS = 1_000


@dataclass(frozen=True)
class _Collection:
    dimensions: int
    shard: edge.EdgeShard


@dataclass(frozen=True)
class _Write:
    apply: Callable[[], edge.EdgeShard | None]  # returns the shard that it changed
    done: Future[None] = field(default_factory=Future)


class EdgeIndex(VectorIndex):
    """The index in `directory`, which is made if missing and held until `close()`. Usable from several event loops.

    Raises Fatal if the directory is open already, in this process or another.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = _hold(directory)
        self._collections: dict[str, _Collection] = {}
        self._loading = threading.Lock()
        self._wake = threading.Condition()
        self._waiting: list[_Write] = []
        self._closed = False
        self._writer = threading.Thread(target=self._write_groups, name="edge-index-writer", daemon=True)
        self._writer.start()

    async def open(self, collection: str, dimensions: int) -> None:
        """Create the collection if it is missing; Fatal if it has another number of dimensions."""
        check_collection_name(collection)

        def create() -> None:
            opened = self._find(collection) or self._create(collection, dimensions)
            check_dimensions(collection, opened.dimensions, dimensions)

        await self._write(create)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points as one operation of the engine's log."""

        def upsert() -> edge.EdgeShard:
            opened = self._find(collection)
            if opened is None:
                raise missing_collection(collection)
            for point in points:
                check_vector(collection, opened.dimensions, point.vector)
            opened.shard.update(
                edge.UpdateOperation.upsert_points(
                    [edge.Point(point.id, to_floats(point.vector), to_payload(point)) for point in points]
                )
            )
            return opened.shard

        if points:
            await self._write(upsert)

    async def show(self, collection: str, ids: Sequence[str], *, tenant: str, revision: int) -> None:
        """Set fields of the points, as one operation of the engine's log."""

        def show() -> edge.EdgeShard:
            opened = self._find(collection)
            if opened is None:
                raise missing_collection(collection)
            opened.shard.update(_showing(ids, tenant, revision))
            return opened.shard

        if ids:
            await self._write(show)

    async def delete_document(
        self, collection: str, *, tenant: str, document_id: str, keep: frozenset[str] = frozenset()
    ) -> None:
        """Delete by filter, as one operation of the engine's log."""

        def delete() -> edge.EdgeShard | None:
            opened = self._find(collection)
            if opened is None:
                return None
            opened.shard.update(_deleting(tenant, document_id, keep))
            return opened.shard

        await self._write(delete)

    async def switch(
        self, collection: str, ids: Sequence[str], *, tenant: str, document_id: str, revision: int, keep: frozenset[str]
    ) -> None:
        """Two operations of the engine's log, one right after the other."""

        def switch() -> edge.EdgeShard:
            opened = self._find(collection)
            if opened is None:
                raise missing_collection(collection)
            if ids:
                opened.shard.update(_showing(ids, tenant, revision))
            opened.shard.update(_deleting(tenant, document_id, keep))
            return opened.shard

        await self._write(switch)

    async def search(self, collection: str, vector: bytes, *, tenant: str, limit: int) -> tuple[Hit, ...]:
        """The nearest of all of the tenant's points: the search is exact."""

        def search() -> tuple[Hit, ...]:
            opened = self._find(collection)
            if opened is None:
                return ()
            check_vector(collection, opened.dimensions, vector)
            request = edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(to_floats(vector)),
                filter=edge.Filter(must=[_equals(TENANT, tenant)]),
                with_payload=True,
            )
            return tuple(to_hit(str(found.id), found.payload, found.score) for found in opened.shard.query(request))

        return await self._read(search)

    async def list_document(self, collection: str, *, tenant: str, document_id: str) -> tuple[Point, ...]:
        """The visible points of one document, by ordinal."""

        def points() -> tuple[Point, ...]:
            visible = edge.Filter(must=[_equals(TENANT, tenant), _equals("document_id", document_id)])
            records = self._scroll(collection, visible, vectors=True)
            found = (to_point(str(r.id), r.payload, cast("list[float]", r.vector)) for r in records)
            return tuple(sorted(found, key=lambda point: point.ordinal))

        return await self._read(points)

    async def states(self, collection: str, *, tenant: str, document_id: str) -> tuple[PointState, ...]:
        """All points of one document."""

        def states() -> tuple[PointState, ...]:
            records = self._scroll(collection, _of_document(tenant, document_id), vectors=False)
            return tuple(to_state(str(record.id), record.payload) for record in records)

        return await self._read(states)

    async def every_state(self, collection: str) -> AsyncIterator[DocumentState]:
        """In pages; a page is of one moment."""
        start: edge.PointId | None = None
        while True:

            def page(start: "edge.PointId | None" = start) -> tuple[list[DocumentState], "edge.PointId | None"]:
                opened = self._find(collection)
                if opened is None:
                    return [], None
                fields = list(DOCUMENT_FIELDS)
                records, following = opened.shard.scroll(
                    edge.ScrollRequest(offset=start, limit=_SCROLL_POINTS, with_payload=fields, with_vector=False)
                )
                return [to_document_state(str(record.id), record.payload) for record in records], following

            states, start = await self._read(page)
            for state in states:
                yield state
            if start is None:
                return

    async def serve(self, alias: str, collection: str) -> None:
        """A file beside the collections, replaced whole."""
        check_collection_name(alias)

        def switch() -> None:
            if self._find(collection) is None:
                raise missing_collection(collection)
            unfinished = self._directory / f".new-alias-{alias}"
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(collection)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._alias(alias))

        await self._write(switch)

    async def serving(self, alias: str) -> str | None:
        """What the file says."""
        return await self._read(lambda: self._served_by(alias))

    def _alias(self, alias: str) -> Path:
        return self._directory / f".alias-{alias}"

    def _served_by(self, alias: str) -> str | None:
        try:
            return self._alias(alias).read_text(encoding="utf-8") if is_collection_name(alias) else None
        except FileNotFoundError:
            return None

    def _scroll(self, collection: str, wanted: edge.Filter, *, vectors: bool) -> Iterator[edge.Record]:
        opened = self._find(collection)
        start: edge.PointId | None = None
        while opened is not None:
            request = edge.ScrollRequest(
                offset=start,
                limit=_SCROLL_POINTS,
                filter=wanted,
                with_payload=True if vectors else list(STATE_FIELDS),
                with_vector=vectors,
            )
            records, start = opened.shard.scroll(request)
            yield from records
            if start is None:
                break

    async def count(self, collection: str) -> int:
        """Visible points in the collection, exact."""

        def count() -> int:
            opened = self._find(collection)
            return (
                0
                if opened is None
                else opened.shard.count(
                    edge.CountRequest(exact=True, filter=edge.Filter(must=[edge.IsEmptyCondition(HIDDEN_TENANT)]))
                )
            )

        return await self._read(count)

    async def close(self) -> None:
        """Finish the writes that are waiting and let go of the directory."""
        await asyncio.to_thread(self._close)

    async def _write(self, apply: Callable[[], edge.EdgeShard | None]) -> None:
        write = _Write(apply)
        with self._wake:
            if self._closed:
                raise self._closed_error()
            self._waiting.append(write)
            self._wake.notify()
        await asyncio.wrap_future(write.done)

    async def _read(self, read: Callable[[], T]) -> T:
        def classed() -> T:
            with _classed("read"):
                return read()

        return await asyncio.to_thread(classed)

    def _write_groups(self) -> None:
        while group := self._next_group():
            time.sleep(_REST * _commit(group))

    def _next_group(self) -> list[_Write]:
        """All writes that are waiting, at least one; none once the index is closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._closed)
            group, self._waiting = self._waiting, []
            return group

    def _find(self, collection: str) -> _Collection | None:
        """The collection, loaded from disk at its first use; None if it does not exist."""
        with self._loading:
            if not self._lock.is_locked:
                raise self._closed_error()
            if is_collection_name(collection) and not (self._directory / collection).is_dir():
                collection = self._served_by(collection) or collection
            opened = self._collections.get(collection)
            path = self._directory / collection
            if opened is None and is_collection_name(collection) and path.is_dir():
                opened = self._collections[collection] = _load(path)
            return opened

    def _create(self, collection: str, dimensions: int) -> _Collection:
        """Make the shard beside its place and rename it, so that kill -9 leaves a whole one or none."""
        unfinished = self._directory / f".new-{collection}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        shard = edge.EdgeShard.create(
            str(unfinished),
            edge.EdgeConfig(
                vectors=edge.EdgeVectorParams(size=dimensions, distance=edge.Distance.Cosine),
                optimizers=edge.EdgeOptimizersConfig(indexing_threshold=_NO_GRAPH_KB),
            ),
        )
        for name, is_tenant in ((TENANT, True), (HIDDEN_TENANT, False), ("document_id", False)):
            shard.update(edge.UpdateOperation.create_field_index(name, edge.KeywordIndexParams(is_tenant=is_tenant)))
        shard.flush()
        shard.close()
        unfinished.rename(self._directory / collection)
        created = self._find(collection)
        if created is None:
            raise missing_collection(collection)
        return created

    def _close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._writer.join()
        with self._loading, _classed("close"):
            while self._collections:
                _, opened = self._collections.popitem()
                opened.shard.flush()
                opened.shard.close()
            self._lock.release()

    def _closed_error(self) -> Fatal:
        return Fatal(f"the embedded index in {self._directory} is closed")


def _hold(directory: Path) -> FileLock:
    # The lock belongs to the index, not to the thread that made it: close() runs in another one.
    lock = FileLock(directory / ".lock", thread_local=False)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds the text of documents
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Fatal(
            f"the embedded index in {directory} is already open in another process. It belongs to one process: run "
            "the flows that need it in one (headrace run ingest answer), or set HEADRACE_QDRANT_URL to use a Qdrant "
            "server"
        ) from error
    except OSError as error:
        raise Fatal(f"the embedded index cannot be kept in {directory}: {error.strerror}") from error
    return lock


def _load(path: Path) -> _Collection:
    try:
        # The engine tells a shard's size nowhere else, and a search must know it without having created the shard.
        config = json.loads((path / "edge_config.json").read_bytes())
        dimensions = int(config["vectors"][""]["size"])
        shard = edge.EdgeShard.load(str(path))
        shard.optimize()
    except Exception as error:  # the engine raises bare Exceptions
        raise Fatal(f"the collection in {path} cannot be loaded, restore it or index again: {error}") from error
    return _Collection(dimensions, shard)


def _commit(group: Sequence[_Write]) -> float:
    """Apply the writes, flush what they changed once, tell the callers. Returns the seconds that flushing took."""
    applied: list[_Write] = []
    changed: set[edge.EdgeShard] = set()
    for write in group:
        if not write.done.set_running_or_notify_cancel():
            continue
        try:
            with _classed("write"):
                shard = write.apply()
        except HeadraceError as error:
            write.done.set_exception(error)
        else:
            applied.append(write)
            changed |= {shard} if shard else set()
    started = time.monotonic()
    try:
        with _classed("flush"):
            for shard in changed:
                shard.flush()
    except HeadraceError as error:
        for write in applied:
            write.done.set_exception(error)
    else:
        for write in applied:
            write.done.set_result(None)
    return time.monotonic() - started


@contextmanager
def _classed(action: str) -> Iterator[None]:
    """Raise what the engine raises as one of our classes."""
    try:
        yield
    except HeadraceError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise Poison(f"the embedded index cannot {action} this: {error}") from error
    except Exception as error:  # a full disk, most likely: the engine raises bare Exceptions
        raise Retryable(f"the embedded index failed to {action}: {error}") from error
    except BaseException as error:  # a panic of the engine, which must not end the writer in silence
        raise Fatal(f"the embedded index broke while it had to {action}, start again: {error}") from error


def _equals(name: str, value: str) -> edge.FieldCondition:
    return edge.FieldCondition(name, match=edge.MatchValue(value))


def _showing(ids: Sequence[str], tenant: str, revision: int) -> edge.UpdateOperation:
    wanted = edge.Filter(must=[edge.HasIdCondition(set(ids))])
    return edge.UpdateOperation.set_payload_by_filter(wanted, shown(tenant, revision))


def _deleting(tenant: str, document_id: str, keep: frozenset[str]) -> edge.UpdateOperation:
    return edge.UpdateOperation.delete_points_by_filter(_of_document(tenant, document_id, keep=keep))


def _of_document(tenant: str, document_id: str, *, keep: frozenset[str] = frozenset()) -> edge.Filter:
    return edge.Filter(
        must=[_equals("document_id", document_id)],
        should=[_equals(TENANT, tenant), _equals(HIDDEN_TENANT, tenant)],
        must_not=[edge.HasIdCondition(set(keep))],
    )
