"""W3C Trace Context: which trace an event belongs to, in the headers `traceparent` and `tracestate`.

https://www.w3.org/TR/trace-context/: version 00 is read strictly, an unknown version as far as it is known. A message
that came without one belongs to the trace of its job, which everybody derives alike from the job's id: so do a replay,
another flow, and the gateway.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
STATE_MAX_CHARS = 512  # what everybody has to pass on; longer ones are left out

_MAX_CHARS = 256  # those of version 00 have 55; anybody may send this header
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\t\x20-\x7e]{1,512}")
_SAMPLED = 0x01
_KNOWN_FLAGS = 0x03  # sampled, and random trace id (level 2)


@dataclass(frozen=True)
class Trace:
    """A place in a trace: what happens next has it as its parent."""

    trace_id: str  # 32 lower-case hexadecimal digits
    span_id: str  # 16
    flags: int = _SAMPLED
    state: str | None = None  # `tracestate`, as it came

    @property
    def sampled(self) -> bool:
        """Whoever began the trace wants it recorded."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @cached_property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """As Kafka headers."""
        parent = (TRACEPARENT, self.traceparent.encode())
        return (parent,) if self.state is None else (parent, (TRACESTATE, self.state.encode()))

    @property
    def http_headers(self) -> dict[str, str]:
        """As headers of an HTTP request."""
        return {name: value.decode() for name, value in self.headers}

    def child(self, span_id: str) -> "Trace":
        """A place below this one."""
        return Trace(self.trace_id, span_id, self.flags, self.state)


def parse(traceparent: str, tracestate: str | None = None) -> Trace | None:
    """The place that the headers name; None where `traceparent` is none. A `tracestate` that is none is left out."""
    found = _PARENT.fullmatch(traceparent) if len(traceparent) <= _MAX_CHARS else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "00" and more is not None:
        return None
    state = tracestate if tracestate is not None and _STATE.fullmatch(tracestate) else None
    return Trace(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS, state)


@lru_cache(4096)  # a message makes some ten records, one after the other
def root_of(job_id: str) -> Trace:
    """The place above all of a job that came without a trace. Nothing happens there: it is nobody's span."""
    digest = hashlib.sha256(b"headrace trace\0" + job_id.encode("utf-8", errors="surrogatepass")).hexdigest()
    return Trace(digest[:32], digest[32:48])


def trace_of(headers: tuple[tuple[str, bytes], ...], job_id: str) -> Trace:
    """The trace of a message: its own, by the last header of that name, or its job's."""
    parent = state = None
    for name, value in headers:
        if name == TRACEPARENT:
            parent = value
        elif name == TRACESTATE:
            state = value
    if parent is not None and len(parent) <= _MAX_CHARS:
        trace = _read(parent, state if state is not None and len(state) <= STATE_MAX_CHARS else None)
        if trace is not None:
            return trace
    return root_of(job_id)


@lru_cache(4096)  # as above
def _read(parent: bytes, state: bytes | None) -> Trace | None:
    return parse(_text(parent), None if state is None else _text(state))


def _text(value: bytes) -> str:
    return value.decode("ascii", errors="replace")
