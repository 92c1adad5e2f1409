"""How something was sent: what the headers of a request say beside its body."""

import re
from dataclasses import dataclass

from starlette.requests import Request

from gateway.body import wrong

MOST_WAIT_S = 120
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,254}[\x21-\x7e])?")


@dataclass(frozen=True)
class Sending:
    """What the headers say."""

    key: str | None = None  # Idempotency-Key
    traceparent: str | None = None
    wait_s: int | None = None  # Prefer: wait

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
            traceparent_of(request),
            None if wait is None else min(int(wait[1]), MOST_WAIT_S),
        )


def traceparent_of(request: Request) -> str | None:
    """W3C trace context, if there is any."""
    found = request.headers.get("traceparent", "")
    return found if _TRACEPARENT.fullmatch(found) else None
