"""What every event has in common: identity, encoding, and the CloudEvents 1.0 attributes in Kafka headers.

Binary mode of the CloudEvents Kafka protocol binding: attributes are headers `ce_*`, the value is the JSON payload.
A value without headers is accepted: its topic says what it is.
"""

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Self
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic.functional_validators import BeforeValidator

from schemas.trace import Trace

NAMESPACE: UUID = uuid5(NAMESPACE_URL, "urn:headrace")
"""Root of every derived id (RFC 9562, version 5)."""


def derive_id(*parts: str) -> str:
    """The same parts give the same id, on every machine and in every run.

    Parts are length-prefixed, so that ("a", "bc") and ("ab", "c") differ.
    """
    name = "".join([f"{len(part)}:{part}" for part in parts]).encode()
    digest = bytearray(hashlib.sha1(NAMESPACE.bytes + name, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5
    digest[8] = digest[8] & 0x3F | 0x80  # RFC 9562's variant
    text = digest.hex()  # as uuid5 would say it, in a third of the time: each event has one
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _decode_base64(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("not a string of standard base64 (RFC 4648 section 4)")  # noqa: TRY004  # pydantic takes no TypeError
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not standard base64 (RFC 4648 section 4): {error}") from error


def _encode_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Base64Bytes = Annotated[
    bytes,
    BeforeValidator(_decode_base64, json_schema_input_type=str),
    PlainSerializer(_encode_base64, when_used="json", return_type=str),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes that are standard base64 in JSON."""

URL_MAX_CHARS = 2048
IDENTIFIER_MAX_CHARS = 256
Identifier = Annotated[
    str, StringConstraints(min_length=1, max_length=IDENTIFIER_MAX_CHARS, pattern=r"^[^\x00-\x1f\x7f]+$")
]
"""An id chosen by a producer: printable, at most 256 characters."""

Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Who pays and who may read. Bounded, since it labels metrics and filters searches."""

CollectionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A set of documents that are searched together. Safe as a file name."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hexadecimal SHA-256 of the exact bytes."""


Timestamp = AwareDatetime
"""RFC 3339 with an offset; a time without one is refused."""


def utc_now() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)


_LAST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def at_unix(seconds: float) -> datetime:
    """That moment in UTC; one beyond what a datetime holds, as `9999-12-31T23:59:59-14:00` is, becomes the last day."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST), UTC)


class Event(BaseModel):
    """Base of all events: immutable; a reader ignores fields that it does not know, so optional ones can be added."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    TYPE: ClassVar[str]
    """CloudEvents `type`, with the major version: `headrace.document.uploaded.v1`."""

    tenant: Tenant = Field(default="default", description="Tenant that it belongs to.")

    @property
    def key(self) -> str:
        """Kafka message key: events of one key keep their order."""
        return self.tenant

    @property
    def key_bytes(self) -> bytes:
        """The key as it is sent."""
        return self.key.encode()

    @property
    def event_id(self) -> str:
        """CloudEvents `id`: equal for a replay of the same fact, so that a consumer can drop repeats."""
        return derive_id(self.TYPE, self.key)

    @classmethod
    def of_tombstone(cls, key: bytes | None) -> Self | None:
        """What a record without a value means on this event's topic, if it means anything."""
        del key
        return None

    def encode(self) -> bytes:
        """The Kafka value: UTF-8 JSON without absent fields."""
        return self.model_dump_json(exclude_none=True).encode()

    def headers(self, *, source: str, trace: Trace | None = None) -> tuple[tuple[str, bytes], ...]:
        """CloudEvents attributes as Kafka headers; `source` names the flow and step that speaks."""
        attributes = (
            ("ce_specversion", b"1.0"),
            ("ce_id", self.event_id.encode()),
            ("ce_type", self.TYPE.encode()),
            ("ce_source", source.encode()),
            ("ce_subject", self.key.encode()),
            ("ce_time", utc_now().isoformat().encode()),
            ("content-type", b"application/json"),
        )
        return attributes if trace is None else (*attributes, *trace.headers)


class JobEvent(Event):
    """Base of the events that are part of a job."""

    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = True
    """False: the job, if there is one, goes on without this message."""

    job_id: Identifier = Field(description="The job that this event is part of.")
    tenant: Tenant = Field(default="default", description="Tenant that owns the job.")

    @property
    def key(self) -> str:
        """Events of one job keep their order."""
        return self.job_id

    @property
    def event_id(self) -> str:
        """One id per job."""
        return derive_id(self.TYPE, self.job_id)

    @property
    def deadline(self) -> datetime | None:
        """When the job is no longer worth working on, if it says so."""
        return None
