"""The work of the control section, the same code for every system: which events there are, and what is done to one.

Validation is Headrace's own model of a request, `schemas.requests.RequestSubmitted`, in every system.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from schemas.requests import RequestSubmitted

PARTITIONS = 4
REPEATED = 0.05  # of all events repeat the id, and all else, of one of the last `AGO`
AGO = 2000
MALFORMED = 0.01  # of all events are cut off
TENANTS = 100
_REGIONS = ("north", "east", "south", "west")
_WORDS = [
    "the",
    "race",
    "sluice",
    "gate",
    "wheel",
    "mill",
    "water",
    "level",
    "pressure",
    "turbine",
    "report",
    "section",
    "manual",
    "maintenance",
]


@dataclass(frozen=True)
class Place:
    """What the harness tells a program, in the environment."""

    bootstrap: str
    source: str  # topic
    output: str  # topic, for what was enriched
    letters: str  # topic, for what was malformed
    group: str
    state: Path  # directory that survives a kill

    @classmethod
    def told(cls) -> "Place":
        """As it was told to this process."""
        at = os.environ
        return cls(
            at["PEERS_BOOTSTRAP"],
            at["PEERS_SOURCE"],
            at["PEERS_OUTPUT"],
            at["PEERS_LETTERS"],
            at["PEERS_GROUP"],
            Path(at["PEERS_STATE"]),
        )

    def variables(self) -> dict[str, str]:
        """To tell it."""
        return {
            "PEERS_BOOTSTRAP": self.bootstrap,
            "PEERS_SOURCE": self.source,
            "PEERS_OUTPUT": self.output,
            "PEERS_LETTERS": self.letters,
            "PEERS_GROUP": self.group,
            "PEERS_STATE": str(self.state),
        }


@dataclass(frozen=True)
class Tenant:
    """What is looked up for the enrichment."""

    tier: str
    region: str


KNOWN = {
    f"tenant-{number:03d}": Tenant("gold" if number % 7 == 0 else "standard", _REGIONS[number % 4])
    for number in range(TENANTS)
}


class Enriched(BaseModel):
    """A request with what is known of its tenant."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    tenant: str
    tier: str
    region: str
    kind: str
    prompt: str
    prompt_tokens: int  # estimated
    reserved_tokens: int
    submitted_at: str


def decode(value: bytes | None) -> RequestSubmitted:
    """The request in a message. Raises ValueError if it is none."""
    return RequestSubmitted.model_validate_json(value or b"")


def enrich(request: RequestSubmitted) -> bytes:
    """The enriched request as JSON; the same for the same request, whenever it is made."""
    tenant = KNOWN[request.tenant]
    prompt = request.prompt or ""
    tokens = len(prompt) // 4 + 1
    enriched = Enriched(
        job_id=request.job_id,
        tenant=request.tenant,
        tier=tenant.tier,
        region=tenant.region,
        kind=request.kind,
        prompt=prompt,
        prompt_tokens=tokens,
        reserved_tokens=tokens + request.max_tokens,
        submitted_at=request.submitted_at.isoformat(),
    )
    return enriched.model_dump_json().encode()


@dataclass(frozen=True)
class Events:
    """What goes in, and what must come out of it."""

    messages: list[tuple[bytes, bytes]]  # key and value
    ids: frozenset[str]  # of valid events
    malformed: int


def events(count: int, seed: int = 0) -> Events:
    """`count` request events of about 0.6 KB."""
    draw = random.Random(seed)  # noqa: S311  # load, no secrets
    messages: list[tuple[bytes, bytes]] = []
    ids: set[str] = set()
    malformed = 0
    for number, text in enumerate(_texts(count, draw)):
        what = draw.random()
        if what < MALFORMED:
            messages.append((f"broken-{number}".encode(), text[: len(text) // 2]))
            malformed += 1
        elif what < MALFORMED + REPEATED and number > 0:
            again = messages[number - draw.randint(1, min(AGO, number))]
            malformed += again[0].startswith(b"broken-")
            messages.append(again)
        else:
            messages.append((f"job-{number:09d}".encode(), text))
            ids.add(f"job-{number:09d}")
    return Events(messages, frozenset(ids), malformed)


def _texts(count: int, draw: random.Random) -> Iterator[bytes]:
    for number in range(count):
        words = " ".join(draw.choices(_WORDS, k=62))
        request = RequestSubmitted.model_validate(
            {
                "job_id": f"job-{number:09d}",
                "tenant": f"tenant-{number % TENANTS:03d}",
                "kind": "generate",
                "prompt": f"Summarise what changed in section {number}: {words}",
                "max_tokens": 256,
                "submitted_at": "2026-01-01T00:00:00Z",
            }
        )
        yield request.encode()
