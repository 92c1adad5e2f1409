"""The results.completed topic: answers."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.event import URL_MAX_CHARS, Identifier, JobEvent, Timestamp, utc_now


class Citation(BaseModel):
    """A passage that the answer rests on."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(ge=1, description="The text refers to this passage as `[number]`.")
    document_id: str = Field(description="The cited document.")
    chunk_id: str = Field(description="The cited chunk.")
    uri: str | None = Field(default=None, description="Where the document came from.")
    label: str | None = Field(default=None, description="Place in the document: `page 7`.")
    text: str = Field(description="The chunk's text.")
    score: float = Field(description="Cosine similarity of chunk and question, -1 to 1.")


class TokenCount(BaseModel):
    """What the inference used."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = Field(ge=0, description="Tokens read.")
    completion_tokens: int = Field(ge=0, description="Tokens written.")
    estimated: bool = Field(default=False, description="The provider reported no usage; these are counted on our side.")


class Timings(BaseModel):
    """Where the time went."""

    model_config = ConfigDict(frozen=True)

    queued_s: float = Field(ge=0, description="From submission until work on it began.")
    retrieve_s: float = Field(ge=0, description="Finding passages.")
    infer_s: float = Field(ge=0, description="Waiting for the model.")


class ResultCompleted(JobEvent):
    """A job's answer. Produced by `answer`, consumed by downstream services and `webhooks`; keyed by `job_id`."""

    TYPE: ClassVar[str] = "headrace.result.completed.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    kind: Literal["answer", "generate"] = Field(description="As in the request.")
    text: str = Field(description="The answer.")
    finish_reason: Literal["stop", "length"] = Field(description="`length`: cut off at the request's `max_tokens`.")
    citations: tuple[Citation, ...] = Field(default=(), description="In the order in which the answer cites them.")
    usage: TokenCount = Field(description="Tokens of this inference.")
    admission_id: Identifier | None = Field(default=None, description="What usage.tokens calls this inference.")
    call_id: Identifier | None = Field(default=None, description="What results.delta calls the call that wrote it.")
    callback_url: str | None = Field(default=None, max_length=URL_MAX_CHARS, description="As in the request.")
    model: str = Field(description="The model that answered.")
    timings: Timings = Field(description="Where the time went.")
    completed_at: Timestamp = Field(default_factory=utc_now, description="When the answer was complete.")
