"""The documents.* topics: a document on its way from an upload to the vector index."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from schemas.event import Base64Bytes, CollectionName, Identifier, JobEvent, Sha256, Timestamp, derive_id, utc_now

INLINE_TEXT_MAX_CHARS = 64 * 1024
"""Text beyond this goes by reference: at 4 bytes a character it is still far below the usual 1 MB message limit."""

Operation = Literal["upsert", "delete"]


class DocumentEvent(JobEvent):
    """What all events of a document carry."""

    document_id: Identifier = Field(
        description="Stable id of the document; a new upload under it replaces the old one."
    )
    collection: CollectionName = Field(default="documents", description="Collection that the document belongs to.")
    op: Operation = Field(default="upsert", description="`upsert` adds or replaces the document, `delete` removes it.")
    uri: str | None = Field(
        default=None, description="Where the document came from; shown in citations.", max_length=4096
    )

    revision: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Orders the versions of a document: one never replaces another with a higher revision. A producer "
        "numbers all of them or none; without numbers they are ordered by `uploaded_at`, in microseconds.",
    )
    children: int = Field(
        default=0, ge=0, description="Documents attached to it, each an upload of its own; set by our flows."
    )
    version: str | None = Field(
        default=None,
        description="Names the content and how it is processed, where both are known; set by our flows.",
        max_length=256,
    )

    @property
    def key(self) -> str:
        """Events of one document keep their order."""
        return self.document_id


def _describe_derived(schema: JsonDict) -> None:
    """Say in JSON Schema what the validators below do."""
    schema["required"] = []
    schema["if"] = {"properties": {"op": {"const": "delete"}}, "required": ["op"]}
    schema["then"] = {"required": ["document_id"]}
    schema["else"] = {"oneOf": [{"required": ["uri"]}, {"required": ["text"]}]}


class DocumentUploaded(DocumentEvent):
    """A document is to be indexed or deleted. Produced by upstream systems, consumed by `ingest` and `extract`.

    `notifications` produces them from what an object store says about its buckets.

    An upsert has exactly one of `uri` and `text`. `document_id` is derived from tenant, collection and source if it is
    absent; `job_id` from the document's id and content, so that the same upload twice is the same job.
    """

    model_config = ConfigDict(json_schema_extra=_describe_derived)

    TYPE: ClassVar[str] = "headrace.document.uploaded.v1"

    text: str | None = Field(
        default=None, description="The document itself, if it is small plain text.", max_length=INLINE_TEXT_MAX_CHARS
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the bytes behind `uri`; checked when they are read."
    )
    parent_id: Identifier | None = Field(
        default=None, description="The document that it is attached to; set by our flows, as is `depth`."
    )
    depth: int = Field(default=0, ge=0, description="How many documents it lies inside of.")
    uploaded_at: Timestamp = Field(
        default_factory=utc_now, description="When it was uploaded; of two versions the later one stays."
    )

    @model_validator(mode="before")
    @classmethod
    def _derive_ids(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = dict(data)
        source = fields.get("text") if fields.get("uri") is None else fields["uri"]
        if "document_id" not in fields and isinstance(source, str) and fields.get("op", "upsert") == "upsert":
            scope = (str(fields.get("tenant", "default")), str(fields.get("collection", "documents")))
            fields["document_id"] = derive_id("document", *scope, source)
        if "job_id" not in fields and "document_id" in fields:
            version = fields.get("sha256") or fields.get("text") or fields.get("uploaded_at") or source or ""
            scope = (str(fields.get("tenant", "default")), str(fields.get("collection", "documents")))
            operation = str(fields.get("op", "upsert"))
            fields["job_id"] = derive_id("job", *scope, str(fields["document_id"]), operation, str(version))
        return fields

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = (self.uri is not None) + (self.text is not None)
        if self.op == "upsert" and sources != 1:
            raise ValueError(f"an upsert needs exactly one of uri and text; this one has {sources}")
        return self


class SectionMark(BaseModel):
    """A place in a text that a citation can name."""

    model_config = ConfigDict(frozen=True)

    start: Annotated[int, Field(ge=0, description="Offset of its first character in the text.")]
    label: Annotated[str, Field(description="Name of the place: `page 7`.")]


class DocumentExtracted(DocumentEvent):
    """A document's text. Produced by `extract`, consumed by `embed`. A delete carries no text."""

    TYPE: ClassVar[str] = "headrace.document.extracted.v1"

    text: str | None = Field(default=None, description="The text, if it is at most 65,536 characters.")
    text_uri: str | None = Field(default=None, description="Claim check: where the UTF-8 text lies, if it is longer.")
    media_type: str | None = Field(default=None, description="As found in the content: `application/pdf`.")
    title: str | None = Field(default=None, description="The document's own title.")
    sections: tuple[SectionMark, ...] = Field(default=(), description="Pages or headings, in order of `start`.")
    attached: tuple[DocumentUploaded, ...] = Field(
        default=(), description="Uploads of what is attached to it, due when it can be found itself."
    )
    extracted_at: Timestamp = Field(default_factory=utc_now, description="When extraction ended.")


class EmbeddedChunk(BaseModel):
    """One chunk with its vector."""

    model_config = ConfigDict(frozen=True)

    chunk_id: str = Field(
        description="uuid5 of collection, tenant, document, content and model; the vector point's id."
    )
    ordinal: int = Field(ge=0, description="Position in the document, from 0.")
    label: str | None = Field(default=None, description="Place in the document: `page 7`.")
    text: str = Field(description="The chunk's text.")
    vector: Base64Bytes = Field(description="float32, little-endian, base64; unit length.")


class DocumentEmbedded(DocumentEvent):
    """A document's chunks with their vectors. Produced by `embed`, consumed by `index`. A delete carries no chunks."""

    TYPE: ClassVar[str] = "headrace.document.embedded.v1"

    model: str = Field(description="Embedding model, with its version.")
    dimensions: int = Field(gt=0, description="Length of each vector.")
    chunks: tuple[EmbeddedChunk, ...] | None = Field(default=None, description="The chunks, if they are few.")
    chunks_uri: str | None = Field(
        default=None, description="Claim check: where the chunks lie as a JSON array, if not."
    )
    attached: tuple[DocumentUploaded, ...] = Field(
        default=(), description="Uploads of what is attached to it, due when it can be found itself."
    )
    embedded_at: Timestamp = Field(default_factory=utc_now, description="When embedding ended.")


class DocumentIndexed(DocumentEvent):
    """A document can be found, or is gone. Produced by `ingest` and `index`, consumed by whoever waits for it."""

    TYPE: ClassVar[str] = "headrace.document.indexed.v1"

    chunks: int = Field(ge=0, description="Points of this document that are now in the index.")
    superseded: bool = Field(
        default=False, description="A newer version was there already; this one came late and changed nothing."
    )
    model: str = Field(description="Embedding model, with its version.")
    indexed_at: Timestamp = Field(default_factory=utc_now, description="When the index had stored the points durably.")
