"""How something was sent: what the headers of a request say beside its body."""

import re
from dataclasses import dataclass, field
from time import time

from starlette.requests import Request

from gateway.body import wrong
from schemas.trace import TRACEPARENT, TRACESTATE, Trace, parse

MOST_WAIT_S = 120
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,254}[\x21-\x7e])?")


@dataclass(frozen=True)
class Sending:
    """What the headers say."""

    key: str | None = None  # Idempotency-Key
    trace: Trace | None = None  # traceparent, tracestate
    wait_s: int | None = None  # Prefer: wait
    began_at: float = field(default_factory=time)  # Unix seconds

    @classmethod
    def of(cls, request: Request) -> "Sending":
        """Raises Problem (422) for an Idempotency-Key that is none; other headers are left out where they are wrong."""
        headers = request.headers
        key = headers.get("idempotency-key")
        if key is not None and not _KEY.fullmatch(key):
            raise wrong("Idempotency-Key", "1 to 256 printable ASCII characters")
        wait = _WAIT.search(headers.get("prefer", ""))
        return cls(
            key,
            trace_of_request(request),
            None if wait is None else min(int(wait[1]), MOST_WAIT_S),
        )


def trace_of_request(request: Request) -> Trace | None:
    """W3C trace context, if there is any: as the standard says, of several `tracestate` one list is made."""
    found = request.headers.getlist(TRACEPARENT)
    if len(found) != 1:
        return None
    return parse(found[0].strip(), ",".join(request.headers.getlist(TRACESTATE)) or None)
