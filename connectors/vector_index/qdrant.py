"""The vector index on a Qdrant server, shared by any number of processes.

Guarantee: a write that returned was applied by the server (`wait=true`). How durable that is, and whether searches are
exact, is the server's configuration.
"""
# ruff: noqa: PLC0415 -- qdrant_client takes 1.7 s to import, and only processes with a server need it

import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import structlog

from connectors.trust import trusting
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
from schemas.errors import Fatal, HeadraceError, Poison, Retryable, Unavailable

if TYPE_CHECKING:
    from qdrant_client import models

log = structlog.get_logger()

IN_MEMORY = ":memory:"

_UPSERT_POINTS = 256  # per request: 1024 dimensions as JSON stay under 6 MB of the server's default limit of 32 MB
_SCROLL_POINTS = 256
_SHOW_POINTS = 4_096  # ids, of 40 bytes each


class QdrantIndex(VectorIndex):
    """The index at `location`: a server's URL, or `:memory:` for qdrant-client's own engine, slow and for tests.

    Belongs to the event loop that calls it first. `timeout_s` holds for each request. `ca`: a PEM file of the
    authorities that are trusted with https, for REST and gRPC; by default the system's.
    Raises Fatal if `location` is no URL, or `ca` no such file.
    """

    def __init__(
        self,
        location: str,
        *,
        api_key: str | None = None,
        ca: Path | None = None,
        prefer_grpc: bool = False,
        grpc_port: int = 6334,
        timeout_s: int = 30,
    ) -> None:
        from qdrant_client import AsyncQdrantClient

        self._server = f"Qdrant at {urlsplit(location).hostname}" if location != IN_MEMORY else "Qdrant in memory"
        self._has_payload_indexes = location != IN_MEMORY
        self._dimensions: dict[str, int] = {}
        if api_key is not None and _is_in_the_clear(location):
            log.warning("the key of Qdrant is sent unencrypted: use https in HEADRACE_QDRANT_URL", server=self._server)
        roots = {} if ca is None else {"root_certificates": ca.read_bytes()}
        rest: dict[str, Any] = {} if location == IN_MEMORY else {"verify": trusting(ca, "HEADRACE_QDRANT_CA")}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Api key is used with an insecure connection")  # on loopback, too
                self._client = AsyncQdrantClient(
                    location,
                    api_key=api_key,
                    prefer_grpc=prefer_grpc,
                    grpc_port=grpc_port,
                    grpc_options=roots,
                    timeout=timeout_s,
                    check_compatibility=False,  # a request from the constructor, in a thread of its own
                    **rest,
                )
        except ValueError as error:
            raise Fatal(f"HEADRACE_QDRANT_URL: {error}; use http://host:6333") from error

    async def open(self, collection: str, dimensions: int) -> None:
        """Create the collection and its payload indexes if they are missing; Fatal if it has another vector size."""
        from qdrant_client import models

        check_collection_name(collection)
        if await self._find(collection) is None:
            try:
                with self._classed(collection):
                    await self._client.create_collection(
                        collection,
                        vectors_config=models.VectorParams(size=dimensions, distance=models.Distance.COSINE),
                    )
            except Retryable:
                if await self._find(collection) is None:
                    raise  # else another process was first
        check_dimensions(collection, await self._find(collection) or dimensions, dimensions)
        if not self._has_payload_indexes:
            return
        for name, is_tenant in ((TENANT, True), (HIDDEN_TENANT, False), ("document_id", False)):
            schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=is_tenant)
            with self._classed(collection):
                await self._client.create_payload_index(collection, name, field_schema=schema, wait=True)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points, 256 per request; after a failure some requests may have been applied."""
        from qdrant_client import models

        if not points:
            return
        dimensions = await self._find(collection)
        if dimensions is None:
            raise missing_collection(collection)
        for point in points:
            check_vector(collection, dimensions, point.vector)
        for first in range(0, len(points), _UPSERT_POINTS):
            batch = [
                models.PointStruct(id=point.id, vector=to_floats(point.vector), payload=to_payload(point))
                for point in points[first : first + _UPSERT_POINTS]
            ]
            with self._classed(collection):
                await self._client.upsert(collection, batch, wait=True)

    async def show(self, collection: str, ids: Sequence[str], *, tenant: str, revision: int) -> None:
        """Set fields of the points, 4,096 points per request."""
        from qdrant_client import models

        if await self._find(collection) is None:
            raise missing_collection(collection)
        for first in range(0, len(ids), _SHOW_POINTS):
            wanted = models.Filter(must=[models.HasIdCondition(has_id=list(ids[first : first + _SHOW_POINTS]))])
            with self._classed(collection):
                await self._client.set_payload(collection, shown(tenant, revision), points=wanted, wait=True)

    async def delete_document(
        self, collection: str, *, tenant: str, document_id: str, keep: frozenset[str] = frozenset()
    ) -> None:
        """Delete by filter, in one request."""
        from qdrant_client import models

        if await self._find(collection) is None:
            return
        unwanted = models.FilterSelector(filter=_of_document(tenant, document_id, keep))
        with self._classed(collection):
            await self._client.delete(collection, unwanted, wait=True)

    async def switch(
        self, collection: str, ids: Sequence[str], *, tenant: str, document_id: str, revision: int, keep: frozenset[str]
    ) -> None:
        """In one request; 4,096 points of a larger document per request, the last of which deletes."""
        from qdrant_client import models

        last = len(ids) // _SHOW_POINTS * _SHOW_POINTS
        await self.show(collection, ids[:last], tenant=tenant, revision=revision)
        unwanted = models.FilterSelector(filter=_of_document(tenant, document_id, keep))
        operations: list[models.UpdateOperation] = [models.DeleteOperation(delete=unwanted)]
        if ids[last:]:
            wanted = models.Filter(must=[models.HasIdCondition(has_id=list(ids[last:]))])
            showing = models.SetPayload(payload=shown(tenant, revision), filter=wanted)
            operations.insert(0, models.SetPayloadOperation(set_payload=showing))
        with self._classed(collection):
            await self._client.batch_update_points(collection, operations, wait=True)

    async def search(self, collection: str, vector: bytes, *, tenant: str, limit: int) -> tuple[Hit, ...]:
        """The nearest of the tenant's points; approximate where the server has built an HNSW graph."""
        dimensions = await self._find(collection)
        if dimensions is None:
            return ()
        check_vector(collection, dimensions, vector)
        with self._classed(collection):
            found = await self._client.query_points(
                collection,
                query=to_floats(vector),
                query_filter=_where(**{TENANT: tenant}),
                limit=limit,
                with_payload=True,
            )
        return tuple(to_hit(str(point.id), point.payload, point.score) for point in found.points)

    async def list_document(self, collection: str, *, tenant: str, document_id: str) -> tuple[Point, ...]:
        """The visible points of one document, by ordinal."""
        found = [
            to_point(str(record.id), record.payload, cast("list[float]", record.vector))
            async for record in self._scroll(
                collection, _where(**{TENANT: tenant, "document_id": document_id}), vectors=True
            )
        ]
        return tuple(sorted(found, key=lambda point: point.ordinal))

    async def states(self, collection: str, *, tenant: str, document_id: str) -> tuple[PointState, ...]:
        """All points of one document."""
        records = self._scroll(collection, _of_document(tenant, document_id), fields=STATE_FIELDS)
        return tuple([to_state(str(record.id), record.payload) async for record in records])

    async def every_state(self, collection: str) -> AsyncIterator[DocumentState]:
        """In pages."""
        async for record in self._scroll(collection, None, fields=DOCUMENT_FIELDS):
            yield to_document_state(str(record.id), record.payload)

    async def serve(self, alias: str, collection: str) -> None:
        """Delete and create the alias in one request, which the server applies as one."""
        from qdrant_client import models

        check_collection_name(alias)
        if await self._find(collection) is None:
            raise missing_collection(collection)
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        changes: list[models.CreateAliasOperation | models.DeleteAliasOperation] = [
            models.CreateAliasOperation(create_alias=create)
        ]
        if await self.serving(alias) is not None:
            changes.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        with self._classed(collection):
            await self._client.update_collection_aliases(changes)
        self._dimensions.pop(alias, None)

    async def serving(self, alias: str) -> str | None:
        """Asks the server."""
        with self._classed(alias):
            aliases = (await self._client.get_aliases()).aliases
        return next((each.collection_name for each in aliases if each.alias_name == alias), None)

    async def _scroll(
        self, collection: str, wanted: "models.Filter | None", *, vectors: bool = False, fields: Sequence[str] = ()
    ) -> AsyncIterator["models.Record"]:
        if await self._find(collection) is None:
            return
        start: models.ExtendedPointId | None = None
        while True:
            with self._classed(collection):
                records, start = await self._client.scroll(
                    collection,
                    scroll_filter=wanted,
                    offset=start,
                    limit=_SCROLL_POINTS,
                    with_payload=list(fields) or True,
                    with_vectors=vectors,
                )
            for record in records:
                yield record
            if start is None:
                return

    async def count(self, collection: str) -> int:
        """Visible points in the collection, exact."""
        from qdrant_client import models

        if await self._find(collection) is None:
            return 0
        visible = models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key=HIDDEN_TENANT))])
        with self._classed(collection):
            return (await self._client.count(collection, visible, exact=True)).count

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _find(self, collection: str) -> int | None:
        """The collection's dimensions, asked for once; None if it does not exist."""
        from qdrant_client import models

        if collection in self._dimensions or not is_collection_name(collection):
            return self._dimensions.get(collection)
        with self._classed(collection):
            if not await self._client.collection_exists(collection):
                return None
            vectors = (await self._client.get_collection(collection)).config.params.vectors
        if not isinstance(vectors, models.VectorParams) or vectors.distance != models.Distance.COSINE:
            raise Fatal(
                f"collection {collection!r} of {self._server} was not made by Headrace (it needs one unnamed vector "
                "and cosine distance): use another collection"
            )
        self._dimensions[collection] = vectors.size
        return vectors.size

    @contextmanager
    def _classed(self, collection: str) -> Iterator[None]:
        """Raise what qdrant-client raises as one of our classes. Its messages are left out: they may hold a text."""
        try:
            yield
        except Exception as error:
            place = f"{self._server}, collection {collection!r}"
            classed = _untrusted(place, error) or _classed(place, error)
            if classed is None:
                raise
            self._dimensions.pop(collection, None)  # it may be gone, or have been made anew
            raise classed from error


def _classed(place: str, error: Exception) -> HeadraceError | None:
    """The class of a client's error; None if it is none."""
    import httpx
    from grpc.aio import AioRpcError  # type: ignore[import-untyped] # grpcio ships no types
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    match error:
        case QdrantException():  # a 429; without the seconds where Retry-After was a date
            return Retryable(f"{place}: too many requests", retry_after_s=getattr(error, "retry_after_s", None))
        case UnexpectedResponse():
            return _of_status(place, error.status_code or 0, error.headers.get("retry-after"))
        case AioRpcError():
            return _of_code(place, error.code().name)
        case ResponseHandlingException() if isinstance(error.source, httpx.TransportError):
            reached = not isinstance(error.source, httpx.ConnectError | httpx.ConnectTimeout)
            kind = Retryable if reached else Unavailable
            return kind(f"{place} is out of reach: {type(error.source).__name__} {error.source}")
        case ResponseHandlingException() | AssertionError():  # the client asserts what an answer holds
            return Fatal(f"{place} does not answer as Qdrant does: check the URL")
    return None


def _untrusted(place: str, error: Exception) -> Fatal | None:
    from grpc.aio import AioRpcError
    from qdrant_client.http.exceptions import ResponseHandlingException

    # By their messages: the classes of httpx and gRPC do not tell.
    said = error.details() if isinstance(error, AioRpcError) else ""
    said = str(error.source) if isinstance(error, ResponseHandlingException) else said
    if "CERTIFICATE_VERIFY_FAILED" not in (said or ""):
        return None
    return Fatal(f"{place}: its certificate is not valid for it; see to HEADRACE_QDRANT_CA and HEADRACE_QDRANT_URL")


def _is_in_the_clear(location: str) -> bool:
    """Whether whoever is on the way to that server can read what is sent there."""
    host = urlsplit(location).hostname or ""
    return location.startswith("http:") and host != "localhost" and not host.startswith("127.") and host != "::1"


def _of_status(place: str, status: int, retry_after: str | None) -> HeadraceError:
    message = f"{place} answered {status}"
    match status:
        case 401 | 403:
            return Fatal(f"{message}: check HEADRACE_QDRANT_API_KEY")
        case 400 | 413 | 422:
            return Poison(f"{message}: it refuses this request; its log says why")
        case 404 | 408 | 409 | 429:
            pass
        case _ if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return Fatal(f"{message}: check the URL")
    return Retryable(message, retry_after_s=float(retry_after) if retry_after and retry_after.isdecimal() else None)


def _of_code(place: str, code: str) -> HeadraceError:
    message = f"{place} answered {code}"
    match code:
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return Fatal(f"{message}: check HEADRACE_QDRANT_API_KEY")
        case "INVALID_ARGUMENT" | "OUT_OF_RANGE":
            return Poison(f"{message}: it refuses this request; its log says why")
        case "UNAVAILABLE":
            return Unavailable(message)
        case "UNIMPLEMENTED" | "FAILED_PRECONDITION":
            return Fatal(f"{message}: check the URL and the server's version")
    return Retryable(message)


def _where(**equal: str) -> "models.Filter":
    from qdrant_client import models

    return models.Filter(
        must=[models.FieldCondition(key=name, match=models.MatchValue(value=value)) for name, value in equal.items()]
    )


def _of_document(tenant: str, document_id: str, but: frozenset[str] = frozenset()) -> "models.Filter":
    """Its points, the hidden ones included, except those."""
    from qdrant_client import models

    wanted = _where(document_id=document_id)
    either = (_where(**{TENANT: tenant}), _where(**{HIDDEN_TENANT: tenant}))
    others = [models.HasIdCondition(has_id=sorted(but))] if but else None
    return models.Filter(must=wanted.must, should=list(either), must_not=others)
