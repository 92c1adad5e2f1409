"""How a point lies in Qdrant: one mapping, so that the embedded engine and a server hold the same data."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ValidationError

from connectors.vector_index.port import DocumentState, Hit, Point, PointState
from schemas.errors import Fatal, Poison

TENANT = "tenant"
HIDDEN_TENANT = "hidden_tenant"
STATE_FIELDS = ("version", "revision", "children", HIDDEN_TENANT)
DOCUMENT_FIELDS = (*STATE_FIELDS, TENANT, "document_id")

_FLOAT_BYTES = 4
# What both a Qdrant server and a file system accept; the first character leaves dot files to the index itself.
_COLLECTION_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def is_collection_name(collection: str) -> bool:
    """Whether a collection can have this name: 1 to 100 of A-Z a-z 0-9 . _ - and no dot in front."""
    return _COLLECTION_NAME.fullmatch(collection) is not None


def check_collection_name(collection: str) -> None:
    """Raise Poison for a name that no collection can have."""
    if not is_collection_name(collection):
        raise Poison(f"collection {collection!r}: use 1 to 100 of A-Z a-z 0-9 . _ - and no dot in front")


def check_dimensions(collection: str, expected: int, given: int) -> None:
    """Raise Fatal if a model has another number of dimensions than the collection."""
    if given != expected:
        raise Fatal(
            f"collection {collection!r} holds vectors of {expected} dimensions, not {given}: "
            "use the embedding model that it was made with, or another collection"
        )


def check_vector(collection: str, expected: int, vector: bytes) -> None:
    """Raise Fatal if a vector has another number of dimensions than the collection."""
    check_dimensions(collection, expected, len(vector) // _FLOAT_BYTES)


def missing_collection(collection: str) -> Fatal:
    """What a write to a collection that was never opened raises."""
    return Fatal(f"collection {collection!r} does not exist: open it before writing to it")


def to_floats(vector: bytes) -> list[float]:
    """The float32 values of a vector."""
    floats: list[float] = np.frombuffer(vector, dtype="<f4").tolist()
    return floats


def to_payload(point: Point) -> dict[str, str | int | None]:
    """All of a point but its id and vector.

    A hidden point has its tenant in another field than the one that searches filter by, so that hiding costs them
    nothing: a second condition made them 16 times slower.
    """
    return {
        TENANT: point.tenant if point.visible else None,
        HIDDEN_TENANT: None if point.visible else point.tenant,
        "document_id": point.document_id,
        "uri": point.uri,
        "ordinal": point.ordinal,
        "label": point.label,
        "text": point.text,
        "version": point.version,
        "revision": point.revision,
        "children": point.children,
    }


def shown(tenant: str, revision: int) -> dict[str, str | int | None]:
    """The fields that make a hidden point visible."""
    return {TENANT: tenant, HIDDEN_TENANT: None, "revision": revision}


def to_point(point_id: str, payload: Mapping[str, object] | None, vector: Sequence[float]) -> Point:
    """The point that was written. Fatal if something else than Headrace wrote it."""
    read = _read(point_id, payload)
    return Point(
        id=point_id,
        tenant=read.tenant,
        document_id=read.document_id,
        uri=read.uri,
        ordinal=read.ordinal,
        label=read.label,
        text=read.text,
        vector=np.asarray(vector, dtype="<f4").tobytes(),
        version=read.version,
        revision=read.revision,
        children=read.children,
    )


def to_state(point_id: str, payload: Mapping[str, object] | None) -> PointState:
    """What a writer must know of a point, from the fields of STATE_FIELDS. Fatal if another than Headrace wrote it."""
    try:
        read = _State.model_validate(payload or {})
    except ValidationError:
        raise _foreign(point_id, "its version and revision") from None
    return PointState(point_id, read.version, read.revision, read.children, read.hidden_tenant is None)


def to_document_state(point_id: str, payload: Mapping[str, object] | None) -> DocumentState:
    """A point of some document, from the fields of DOCUMENT_FIELDS. Fatal if another than Headrace wrote it."""
    fields = payload or {}
    tenant, document_id = fields.get(HIDDEN_TENANT) or fields.get(TENANT), fields.get("document_id")
    if not isinstance(tenant, str) or not isinstance(document_id, str):
        raise _foreign(point_id, "its tenant and document")
    return DocumentState(tenant, document_id, to_state(point_id, payload))


def to_hit(point_id: str, payload: Mapping[str, object] | None, score: float) -> Hit:
    """A point found. Fatal if something else than Headrace wrote it."""
    read = _read(point_id, payload)
    return Hit(
        id=point_id,
        document_id=read.document_id,
        uri=read.uri,
        ordinal=read.ordinal,
        label=read.label,
        text=read.text,
        score=min(1.0, max(-1.0, score)),  # rounding in the engine may lift a cosine a hair above 1
    )


class _State(BaseModel):
    version: str | None = None
    revision: int = 0
    children: int = 0
    hidden_tenant: str | None = None


class _Payload(_State):
    tenant: str
    document_id: str
    uri: str | None
    ordinal: int
    label: str | None
    text: str


def _read(point_id: str, payload: Mapping[str, object] | None) -> _Payload:
    try:
        return _Payload.model_validate(payload)
    except ValidationError as error:
        fields = ", ".join(str(at) for problem in error.errors() for at in problem["loc"])
        raise _foreign(point_id, fields or "everything") from None


def _foreign(point_id: str, lacks: str) -> Fatal:
    return Fatal(
        f"point {point_id} was not written by Headrace (payload lacks {lacks}): give Headrace a collection of its own"
    )
