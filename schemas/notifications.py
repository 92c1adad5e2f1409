"""The documents.notified topic: what an object store says about its buckets, in S3's format, which MinIO speaks too."""

import json
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator
from pydantic.config import JsonDict

from schemas.event import CollectionName, JobEvent, Tenant, Timestamp, derive_id

BucketName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]
"""As old and new buckets are named; no `/`, which would shift the border between bucket and key."""


class BucketScope(BaseModel):
    """Whose documents the objects of a bucket are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: Tenant = "default"
    collection: CollectionName = "documents"


class _Notified(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Bucket(_Notified):
    """The bucket of a record."""

    name: BucketName = Field(description="Its name.")


class StoredObject(_Notified):
    """The object of a record."""

    key: str = Field(min_length=1, description="Its key, form-encoded: a blank is `+`, other characters are `%XX`.")
    size: int | None = Field(default=None, ge=0, description="Its bytes; a removal says none.")
    etag: str | None = Field(default=None, alias="eTag", description="Names its content.")
    sequencer: str | None = Field(default=None, description="Grows with each event of one key.")


class Place(_Notified):
    """Where something happened."""

    bucket: Bucket = Field(description="The bucket.")
    object: StoredObject = Field(description="The object.")


class ObjectNotified(_Notified):
    """One thing that happened to one object."""

    event_name: str = Field(
        alias="eventName",
        description="`ObjectCreated:*` and `ObjectRemoved:*` are followed; MinIO writes `s3:` before it.",
    )
    event_time: Timestamp = Field(alias="eventTime", description="When it happened.")
    s3: Place = Field(description="Bucket and object.")


_RECORD = Annotated[ObjectNotified | JsonValue, Field(union_mode="left_to_right")]


def _describe_derived(schema: JsonDict) -> None:
    """Say in JSON Schema what the validator below does: `job_id` is not S3's."""
    schema["required"] = []
    schema["anyOf"] = [{"required": ["Records"]}, {"required": ["Event"]}]


class BucketNotified(JobEvent):
    """Objects were created or removed. Produced by S3 or MinIO, consumed by `notifications`, under any key.

    Where a bucket's messages are keyed by object, as MinIO's are, uploads and removals of one object keep their order.
    """

    model_config = ConfigDict(json_schema_extra=_describe_derived)

    TYPE: ClassVar[str] = "headrace.bucket.notified.v1"

    records: tuple[_RECORD, ...] = Field(
        default=(),
        alias="Records",
        description="What happened. One that is malformed becomes a dead letter; the others are done.",
    )
    event: str | None = Field(default=None, alias="Event", description="`s3:TestEvent`: there are no records.")

    @model_validator(mode="before")
    @classmethod
    def _derive_job(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if not {"Records", "Event"} & data.keys():
            raise ValueError("Records is missing: this is no notification of S3 or MinIO")
        content = json.dumps(data, sort_keys=True, default=str, allow_nan=False)  # NaN, which is no JSON, is refused
        return {"job_id": derive_id("notification", content)} | data

    def encode(self) -> bytes:
        """The Kafka value: UTF-8 JSON, named as S3 names it."""
        return self.model_dump_json(exclude_none=True, by_alias=True).encode()
