"""What a watcher of a job is told, and how far it has been told: the words that read model, hub and streams share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self

from schemas.explanation import Standing

Lane = Literal["status", "delta", "result"]
"""A topic whose events watchers are told; a job's events lie in one partition of each."""

_WRITTEN = re.compile(r"s(\d{1,19})\.d(\d{1,19})\.r(\d{1,19})")


@dataclass(frozen=True)
class Position:
    """How far a watcher has been told: of each lane, the first offset that it has not. Every gateway understands it."""

    status: int = 0
    delta: int = 0
    result: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`; ValueError for anything else."""
        written = _WRITTEN.fullmatch(text) if text.isascii() else None
        if written is None:
            raise ValueError(
                f"{text[:80]!r} is no position in a stream, such as s12.d40.r3; leave it out to begin anew"
            )
        return cls(*(int(number) for number in written.groups()))

    def __str__(self) -> str:
        return f"s{self.status}.d{self.delta}.r{self.result}"

    def has(self, told: "Told") -> bool:
        """Whether the event lies before it."""
        reached: int = getattr(self, told.lane)
        return told.offset < reached

    def past(self, told: "Told") -> "Position":
        """The position after the event."""
        return replace(self, **{told.lane: told.offset + 1})


@dataclass(frozen=True)
class Told:
    """One event of a job; `data` is its JSON, encoded once for all watchers."""

    lane: Lane
    offset: int
    data: bytes


@dataclass(frozen=True)
class Change:
    """What a batch of records, or all of them so far, have made of a job."""

    job_id: str
    told: Sequence[Told]
    state: Standing
    ended: bool  # and its result is there, if it has one
    settled: bool  # ended, and nothing more is expected to be told
    updated_at: datetime
