"""The port to a language model."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Message:
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    wants: "WantedTool | None" = None  # of an assistant's message
    answers: str | None = None  # of a tool's message: the id of the call


@dataclass(frozen=True)
class OfferedTool:
    """Something that the model may ask for instead of answering."""

    name: str
    description: str
    parameters: Mapping[str, object]  # JSON Schema


@dataclass(frozen=True)
class WantedTool:
    """The model's wish to have a tool called before it goes on."""

    call_id: str
    name: str
    arguments: str  # JSON, as the model wrote it


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk that the answer may rest on and cite."""

    text: str
    label: str | None  # where it stands: "guide.pdf, page 7"


@dataclass(frozen=True)
class Prompt:
    """Everything one inference needs."""

    job_id: str  # with `redrives` and what is asked, the idempotency key where the endpoint knows one
    messages: tuple[Message, ...]  # at least one; the last is the user's or a tool's
    passages: tuple[Passage, ...]  # best first; the answer cites the n-th as [n]; empty for plain generation
    max_tokens: int  # limit on completion tokens
    tools: tuple[OfferedTool, ...] = ()
    redrives: int = 0  # how often a person asked for the call again, and so for another answer


CHARS_PER_TOKEN = 4  # rule of thumb for English; only where nobody counts


def estimated_tokens(chars: int) -> int:
    """What so many characters may be."""
    return -(-chars // CHARS_PER_TOKEN)


def length_of(prompt: Prompt) -> int:
    """Characters that the model reads."""
    parts = [message.content for message in prompt.messages]
    parts += [message.wants.arguments for message in prompt.messages if message.wants is not None]
    parts += [passage.text for passage in prompt.passages]
    parts += [tool.description + json.dumps(dict(tool.parameters)) for tool in prompt.tools]
    return sum(map(len, parts))


@dataclass(frozen=True)
class Delta:
    """A piece of the answer as it is written."""

    text: str


@dataclass(frozen=True)
class Completion:
    """The whole answer; always the last thing that a stream yields."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cited: tuple[int, ...]  # indices into Prompt.passages, from 0, in order of first citation
    finish_reason: Literal["stop", "length", "tool"]  # `tool`: it wants one
    wants: WantedTool | None = None  # the first call, where the model asks for several: it asks again for the others
    usage_estimated: bool = False  # the endpoint reported no usage: the tokens are counted on our side


class LLM(Protocol):
    """One inference per call, streamed."""

    model: str = "unknown"
    """Named by the bills of calls that were cut off; an answer may know better."""

    def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        """Yield the deltas as they come, then exactly one Completion whose text is their concatenation.

        Raises:
            Unavailable: a refused connection.
            Retryable: 408, 409, 425, 429, 5xx (with Retry-After), a cut or malformed stream; a whole answer that
                makes no sense, with its bill.
            Poison: 400, 413, 422: this prompt is refused.
            Fatal: 401, 403, 404: the key or the model is wrong.

        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
