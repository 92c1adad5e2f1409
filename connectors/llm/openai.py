"""Any OpenAI-compatible endpoint (vLLM, Ollama, hosted): one streamed chat completion per call.

Guarantee: a stream that was cut, malformed or without an end never counts as an answer. Cancelling the call closes the
connection at once, which is how these servers learn to stop generating.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from connectors.llm.port import (
    LLM,
    Completion,
    Delta,
    Message,
    Passage,
    Prompt,
    WantedTool,
    estimated_tokens,
    length_of,
)
from connectors.retry_after import retry_after_s
from connectors.tracing.off import NoTracing
from connectors.tracing.port import Attribute, OpenSpan, Tracer, outgoing_call
from connectors.trust import trusting
from schemas.errors import Bill, Fatal, HeadraceError, Poison, Retryable, Unavailable

CONNECT_TIMEOUT_S = 10.0  # a listening server answers a SYN in milliseconds; across the world in one second
IDLE_TIMEOUT_S = 60.0  # between two bytes: the first token of a long prompt on a busy server takes tens of seconds
MAX_LINE_BYTES = 1 << 20  # of one server-sent event; deltas are a few hundred bytes

_CITED = re.compile(
    r"\[(\d{1,3})\]"
)  # a longer number cites nothing, and Python refuses to read one of thousands of digits
_INSTRUCTION = (
    "Answer from the numbered passages below, and cite each one that you use as [n]. "
    "If they do not hold the answer, say so.\n\n"
)


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Wire):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(_Wire):
    """A call, or a piece of one: in a stream its arguments come in parts, which belong together by `index`."""

    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Message(_Wire):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(_Wire):
    delta: _Message | None = None  # of a chunk
    message: _Message | None = None  # of a whole completion
    finish_reason: str | None = None


MAX_TOKENS = 1_000_000_000  # of one call; more is no count of tokens, and would not fit the ledger's columns for long


class _Usage(_Wire):
    prompt_tokens: int = Field(ge=0, le=MAX_TOKENS)
    completion_tokens: int = Field(ge=0, le=MAX_TOKENS)


class _Reply(_Wire):
    """A chunk of a stream, or a whole completion: https://platform.openai.com/docs/api-reference/chat."""

    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None

    @field_validator("usage", mode="before")
    @classmethod
    def _plausible(cls, usage: object) -> object:
        """A wrong bill is no reason to throw the answer away and pay for it again: the tokens are then estimated."""
        try:
            return _Usage.model_validate(usage)
        except ValidationError:
            return None

    error: dict[str, object] | None = None


class ServerSentEvents:
    """Incremental parser of an event stream's `data` (WHATWG HTML, section 9.2.6), however its bytes are cut."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that `piece` completes. Raises Retryable if it is no UTF-8, or a line has no end."""
        lines = (self._buffer + piece).split(b"\n")
        self._buffer = lines.pop()
        if len(self._buffer) > MAX_LINE_BYTES:
            raise Retryable(f"the model's stream has a line of more than {MAX_LINE_BYTES} bytes")
        found: list[str] = []
        for line in lines:
            text = _text(line.removesuffix(b"\r"))
            if text == "":
                if self._data:
                    found.append("\n".join(self._data))
                self._data = []
            elif text.startswith("data:"):
                self._data.append(text.removeprefix("data:").removeprefix(" "))
        return found


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise Retryable("the model's stream is not UTF-8") from error


class OpenAICompatibleLLM(LLM):
    """One endpoint and model. Use it from one event loop.

    base_url: up to `/v1`. `connections`: calls at once; the flow's capacity is the bound that matters. `ca`: a PEM file
    of the authorities that are trusted with https; by default the system's. Raises Fatal if it is no such file.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        ca: Path | None = None,
        connections: int = 10_000,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        tracer: Tracer = NoTracing(),  # noqa: B008  # without state
    ) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self.model = model
        self._named: dict[str, Attribute] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "server.address": urlsplit(base_url).hostname or "",
        }
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._tls = trusting(ca, "HEADRACE_LLM_CA")
        self._connections = connections
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=idle_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._tracer = tracer

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        """Call the endpoint; see the port for what is raised."""
        answer = _Answer(prompt, self.model)
        with outgoing_call(self._tracer, f"chat {self.model}", **self._named) as span:
            async for delta in self._deltas(prompt, answer, span):
                yield delta
            completion = answer.completion()
            span.attributes |= {
                "gen_ai.response.model": completion.model,
                "gen_ai.usage.input_tokens": completion.prompt_tokens,
                "gen_ai.usage.output_tokens": completion.completion_tokens,
            }
        yield completion

    async def _deltas(self, prompt: Prompt, answer: "_Answer", span: OpenSpan) -> AsyncIterator[Delta]:
        body = self._body(prompt)
        headers = self._headers | {"Idempotency-Key": _idempotency_key(prompt, body)} | span.http_headers
        with _classed(self._url):
            async with self._open().post(self._url, json=body, headers=headers) as response:
                span.attributes["http.response.status_code"] = response.status
                if response.status != 200:  # noqa: PLR2004  # OK
                    raise _refusal(response.status, response.headers, await response.content.read(4096))
                if response.content_type == "application/json":  # a server that does not stream
                    whole = answer.take(_text(await response.read()))
                    if whole:
                        yield Delta(whole)
                else:
                    events = ServerSentEvents()
                    async for piece in response.content.iter_any():
                        for data in events.feed(piece):
                            if data.strip() != "[DONE]" and (text := answer.take(data)):
                                yield Delta(text)

    def _body(self, prompt: Prompt) -> dict[str, object]:
        messages = list(map(_wire_message, prompt.messages))
        if prompt.passages:
            messages.insert(0, {"role": "system", "content": _INSTRUCTION + _numbered(prompt.passages)})
        tools = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in prompt.tools
        ]
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": prompt.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"tools": tools, "parallel_tool_calls": False} if tools else {}),
        }

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, ssl=self._tls)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


@contextmanager
def _classed(url: str) -> Iterator[None]:
    """Raise the client's errors as ours."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise Fatal(
            f"the model at {url} has no certificate that is valid for it; see to HEADRACE_LLM_CA and HEADRACE_LLM_URL"
        ) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Unavailable(f"the model at {url} cannot be reached: {type(error).__name__}") from error
    except TimeoutError as error:
        raise Retryable(f"the model at {url} fell silent") from error
    except aiohttp.ClientError as error:
        raise Retryable(f"the model at {url} cut the call: {type(error).__name__}") from error


class _Answer:
    """What has been read of one answer."""

    def __init__(self, prompt: Prompt, model: str) -> None:
        self._prompt = prompt
        self._model = model
        self._parts: list[str] = []
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None
        self._wanted: list[_ToolCall] = []  # the pieces of the first call
        self._other_began = False

    def take(self, data: str) -> str:
        """Read one reply; the text that it adds."""
        try:
            reply = _Reply.model_validate_json(data)
        except ValidationError as error:
            raise Retryable(f"the model's reply is malformed: {error.error_count()} faults") from error
        if reply.error is not None:
            raise Retryable(f"the model gave up in the middle: {_named(reply.error)}")
        self._model = reply.model or self._model
        self._usage = reply.usage or self._usage
        added = ""
        for choice in reply.choices[:1]:
            part = choice.delta or choice.message
            added += (part.content or "") if part is not None else ""
            calls = (part.tool_calls if part is not None else None) or []
            # Of several calls the first: a whole completion lists them, a stream numbers their pieces.
            for call in calls[:1] if choice.message is not None else calls:
                self._gather(call)
            self._finish_reason = choice.finish_reason or self._finish_reason
        if added:
            self._parts.append(added)
        return added

    def _gather(self, piece: _ToolCall) -> None:
        """Keep a piece of the first call, whatever its number: some servers number all calls 0, some begin with 1."""
        if self._wanted and piece.index != self._wanted[0].index:
            return
        begun = self._call_id()
        if piece.function.name and piece.id and begun not in {None, piece.id}:
            self._other_began = True
        if not self._other_began:
            self._wanted.append(piece)

    def _call_id(self) -> str | None:
        return next((piece.id for piece in self._wanted if piece.id), None)

    def _arguments(self) -> str:
        return "".join(piece.function.arguments or "" for piece in self._wanted)

    def _wants(self) -> WantedTool | None:
        """The call that the model asks for. Raises Retryable if its pieces make none."""
        if self._finish_reason == "length":  # a call that was cut off is none
            return None
        if not self._wanted and (self._finish_reason != "tool_calls" or self._parts):
            return None
        call_id = self._call_id()
        name = "".join(dict.fromkeys(piece.function.name or "" for piece in self._wanted))  # some servers repeat it
        if call_id is None or not name:
            raise Retryable("the model asks for a tool without naming it")
        return WantedTool(call_id, name, self._arguments() or "{}")

    def completion(self) -> Completion:
        """The whole answer. Raises Retryable: the stream ended before it did; it makes no sense (with its bill)."""
        if self._finish_reason is None:
            raise Retryable("the model's stream was cut before its end")
        text = "".join(self._parts)
        passages = len(self._prompt.passages)
        cited = (int(mark) - 1 for mark in _CITED.findall(text))
        written = len(text) + len(self._arguments())
        usage = self._usage or _Usage(
            prompt_tokens=estimated_tokens(length_of(self._prompt)),
            completion_tokens=estimated_tokens(written),
        )
        try:
            wants = self._wants()
        except Retryable as error:
            error.bill = Bill(self._model, usage.prompt_tokens, usage.completion_tokens, self._usage is None)
            raise
        finish_reason: Literal["stop", "length", "tool"] = "length" if self._finish_reason == "length" else "stop"
        return Completion(
            text=text,
            model=self._model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cited=tuple(dict.fromkeys(index for index in cited if 0 <= index < passages)),
            finish_reason=finish_reason if wants is None else "tool",
            wants=wants,
            usage_estimated=self._usage is None,
        )


def _idempotency_key(prompt: Prompt, body: dict[str, object]) -> str:
    """The same for every attempt at a call; the next turn of its job, or a redrive, is another call."""
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return f"{prompt.job_id}/{prompt.redrives}/{digest[:32]}"


def _wire_message(message: Message) -> dict[str, object]:
    wire: dict[str, object] = {"role": message.role, "content": message.content}
    if message.wants is not None:
        function = {"name": message.wants.name, "arguments": message.wants.arguments}
        wire["tool_calls"] = [{"id": message.wants.call_id, "type": "function", "function": function}]
    if message.answers is not None:
        wire["tool_call_id"] = message.answers
    return wire


def _numbered(passages: tuple[Passage, ...]) -> str:
    return "\n\n".join(
        f"[{number}] {passage.label or ''}\n{passage.text}" for number, passage in enumerate(passages, start=1)
    )


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> HeadraceError:
    """The classed error of a reply other than 200. Of its body only `type` and `code` are shown: it may quote us."""
    try:
        error = _Reply.model_validate_json(body).error
    except ValidationError:
        error = None
    shown = f"the model answered {status}" + (f" ({_named(error)})" if error is not None else "")
    match status:
        case 401 | 403:
            return Fatal(f"{shown}: check HEADRACE_LLM_API_KEY")
        case 404:
            return Fatal(f"{shown}: check HEADRACE_LLM_URL and HEADRACE_LLM_MODEL")
        case 408 | 409 | 425 | 429:
            return Retryable(shown, retry_after_s=retry_after_s(headers.get("Retry-After")))
        case _ if status >= 500:  # noqa: PLR2004  # server errors
            return Retryable(shown, retry_after_s=retry_after_s(headers.get("Retry-After")))
        case _:
            return Poison(shown)


def _named(error: dict[str, object]) -> str:
    return (
        " ".join(str(error[name])[:100] for name in ("type", "code") if error.get(name) is not None)
        or "no reason given"
    )
