"""The requests.submitted topic: one inference wanted."""

import json
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator
from pydantic.config import JsonDict

from schemas.event import URL_MAX_CHARS, CollectionName, Identifier, JobEvent, Timestamp, derive_id, utc_now

PROMPT_MAX_CHARS = 100_000
"""All messages of a request together. About 25,000 tokens of English: more than a retrieval prompt needs, and far below
a Kafka message's usual 1 MB limit."""

TOOLS_MAX_CHARS = 100_000
"""All tools of a request together, as JSON. Sent with every turn, and part of every event on tools.requested."""

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""As OpenAI's chat completions allow them."""


class Tool(BaseModel):
    """Something that the model may ask for in the middle of the job."""

    model_config = ConfigDict(frozen=True)

    name: ToolName = Field(description="Whoever serves it on tools.requested knows it by this.")
    description: str = Field(default="", max_length=2000, description="For the model: what it does, and when.")
    parameters: dict[str, JsonValue] = Field(
        default={"type": "object", "properties": {}}, description="JSON Schema of its arguments."
    )

    @property
    def chars(self) -> int:
        """Size of its JSON."""
        return len(self.model_dump_json())


class ToolCall(BaseModel):
    """The model's wish to have a tool called."""

    model_config = ConfigDict(frozen=True)

    call_id: Identifier = Field(description="Names the call.")
    tool: str = Field(max_length=64, description="Which tool.")
    arguments: str = Field(description="JSON, as the model wrote it.")


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: str = Field(description="What is said; empty only beside a `tool_call`.")
    tool_call: ToolCall | None = Field(default=None, description="With `assistant`: what the model asked for.")
    tool_call_id: Identifier | None = Field(default=None, description="With `tool`: the call that this answers.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content and self.tool_call is None:
            raise ValueError("content must not be empty")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a tool's message, and no other, names its tool_call_id")
        return self

    @property
    def chars(self) -> int:
        """Size of what is said, asked for and named."""
        call = self.tool_call
        asked = 0 if call is None else len(call.call_id) + len(call.tool) + len(call.arguments)
        return len(self.content) + asked + len(self.tool_call_id or "")


def _describe_derived(schema: JsonDict) -> None:
    """Say in JSON Schema what the validators below do."""
    schema["required"] = []
    schema["oneOf"] = [{"required": ["prompt"]}, {"required": ["messages"]}]


class RequestSubmitted(JobEvent):
    """An inference is wanted. Produced by upstream systems, consumed by `answer`; keyed by `job_id`.

    Exactly one of `prompt` and `messages`. `job_id` is derived from the content if it is absent, so that the same
    request twice is the same job; send your own to ask the same thing again.
    """

    model_config = ConfigDict(json_schema_extra=_describe_derived)

    TYPE: ClassVar[str] = "headrace.request.submitted.v1"

    kind: Literal["answer", "generate"] = Field(
        default="answer",
        description="`answer` retrieves passages from `collection` and answers from them; `generate` only infers.",
    )
    prompt: str | None = Field(default=None, min_length=1, description="The question, if it is a single turn.")
    messages: tuple[ChatMessage, ...] | None = Field(default=None, min_length=1, description="The conversation.")
    collection: CollectionName = Field(default="documents", description="Collection to retrieve from.")
    passages: Annotated[int, Field(ge=1, le=50)] = Field(default=6, description="How many passages to retrieve.")
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = Field(default=512, description="Limit on completion tokens.")
    tools: tuple[Tool, ...] = Field(
        default=(),
        max_length=32,
        description="What the model may ask for, 100,000 characters of JSON at most; each call is an event on "
        "tools.requested.",
    )
    deadline_at: Timestamp | None = Field(default=None, description="After this the answer is of no use.")
    depth: Annotated[int, Field(ge=0)] = Field(default=0, description="How many inferences led to this one.")
    parent_job_id: Identifier | None = Field(default=None, description="The job that asked for this one.")
    root_job_id: Identifier | None = Field(
        default=None,
        description="The job at the top of the chain; may be absent beside a parent if `depth` is 1: it is the parent.",
    )
    callback_url: str | None = Field(
        default=None,
        max_length=URL_MAX_CHARS,
        description="Where to post how the job ended: Standard Webhooks, signed by `webhooks`.",
    )
    submitted_at: Timestamp = Field(default_factory=utc_now, description="When it was submitted.")

    @model_validator(mode="before")
    @classmethod
    def _derive_id(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "job_id" in data:
            return data
        asked = {name: data[name] for name in cls.model_fields if name in data and name != "submitted_at"}
        return {**data, "job_id": derive_id("request", json.dumps(asked, sort_keys=True, default=repr))}

    @model_validator(mode="after")
    def _one_prompt_of_bounded_size(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        if self.messages is not None and self.messages[-1].role not in {"user", "tool"}:
            raise ValueError(f"the last message must be the user's or a tool's, not the {self.messages[-1].role}'s")
        # Not by `turns`, which makes a message of the prompt: every request comes by here.
        size = len(self.prompt or "") if self.messages is None else sum(turn.chars for turn in self.messages)
        if size > PROMPT_MAX_CHARS:
            raise ValueError(f"the prompt has {size} characters; the limit is {PROMPT_MAX_CHARS}")
        size = sum(tool.chars for tool in self.tools)
        if size > TOOLS_MAX_CHARS:
            raise ValueError(f"the tools have {size} characters as JSON; the limit is {TOOLS_MAX_CHARS}")
        return self

    @model_validator(mode="after")
    def _names_its_root(self) -> Self:
        """Limits are per root: a chain that names parents alone would be under a new one at each step."""
        if self.parent_job_id is not None and self.root_job_id is None and self.depth != 1:
            raise ValueError("parent_job_id without root_job_id: name the root too, or say depth 1 if the parent is it")
        return self

    @property
    def turns(self) -> tuple[ChatMessage, ...]:
        """The conversation, whichever way it was given."""
        if self.messages is not None:
            return self.messages
        return (ChatMessage(role="user", content=self.prompt or ""),)

    @property
    def prompt_chars(self) -> int:
        """Size of all that is sent to the model, in characters: every turn, and every tool."""
        return sum(turn.chars for turn in self.turns) + sum(tool.chars for tool in self.tools)

    @property
    def root(self) -> str:
        """The job at the top of the chain; this one, if it has no parent."""
        return self.root_job_id or self.parent_job_id or self.job_id

    @property
    def deadline(self) -> datetime | None:
        """When the answer is of no use any more."""
        return self.deadline_at
