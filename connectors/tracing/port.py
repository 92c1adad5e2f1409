"""The port to whoever records spans, and how a call learns in which trace it is made."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import time
from typing import Literal, Protocol

from schemas.trace import Trace

Attribute = str | bool | int | float
Kind = Literal["internal", "server", "client", "consumer"]

CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""In which trace the running task works, if in any: whatever it sends out is a child of this place."""


@dataclass(frozen=True)
class Span:
    """Something that has ended. Attributes are ids, counts and names: no prompt, no text, no secret."""

    name: str
    trace: Trace  # its own place
    parent_id: str | None  # None: the first of its trace
    began_at: float  # Unix seconds
    ended_at: float
    kind: Kind = "internal"
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    failed: str | None = None  # class of the error, if it failed


class Tracer(Protocol):
    """Records spans, whole ones, once they have ended: so each ends once. Never blocks, never raises."""

    @property
    def on(self) -> bool:
        """False: nothing is recorded, and traces are passed on as they came."""
        ...

    def record(self, span: Span) -> None:
        """Take it; from any thread."""
        ...

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        ...


def new_span_id() -> str:
    """A random one."""
    return os.urandom(8).hex()


class OpenSpan:
    """One that has begun: what is learned of it until it ends."""

    def __init__(self, trace: Trace | None) -> None:
        self.trace = trace
        self.attributes: dict[str, Attribute] = {}

    @property
    def http_headers(self) -> dict[str, str]:
        """What a request says of it; nothing outside of any trace."""
        return {} if self.trace is None else self.trace.http_headers


@contextmanager
def outgoing_call(tracer: Tracer, name: str, **attributes: Attribute) -> Iterator[OpenSpan]:
    """A request to somebody else, as a span of its own below CURRENT, recorded when it ends, however it does.

    Where nothing is recorded, its `http_headers` pass the trace on as it came.
    """
    above = CURRENT.get()
    if above is None or not tracer.on or not above.sampled:
        yield OpenSpan(above)
        return
    span = OpenSpan(above.child(new_span_id()))
    began_at, failed = time(), None
    try:
        yield span
    except BaseException as error:
        failed = type(error).__name__
        raise
    finally:
        trace = above if span.trace is None else span.trace
        known = attributes | span.attributes
        tracer.record(Span(name, trace, above.span_id, began_at, time(), "client", known, failed))
