"""What a call of a model writes, told while it is written: its deltas.

Guarantee: the deltas of a call that ended well are its whole text, in order, the last one marked; a call that wrote
nothing before its end has none. They never fail a call nor hold it up, and take no more memory than the text: the first
piece is told at once, what comes within INTERVAL_S of a delta in one, and nothing before the flow has taken the one
before. State: none; after a crash, or a failed attempt, another call begins anew.
"""

import asyncio
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from operators.offload import Pending, Ready
from schemas.deltas import TextDelta

INTERVAL_S = 0.1  # faster than anybody reads, and ten events a second however fast the model is
DELTA_MAX_CHARS = 100_000  # in JSON 600,000 bytes at most, which a topic takes


class Narration:
    """One call's. Use it on the event loop, while entered: what is left when the call failed is not told."""

    def __init__(self, pending: Pending[Any]) -> None:
        self.call_id = str(uuid4())
        self._pending = pending
        self._parts: list[str] = []  # not told yet
        self._told_chars = 0
        self.chars = 0  # that the model has written so far
        self._number = 0
        self._last: Ready | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        """The model has written more."""
        if text:
            self.chars += len(text)
            self._parts.append(text)
            if self._timer is None:
                self._tell_more()

    def end(self, text: str) -> None:
        """The call ended well, and this is all that it has written."""
        self._stop()
        if self._last is None:  # the result itself is not a moment later
            return
        self._tell(text[self._told_chars :], last=True)

    @property
    def told_as(self) -> str | None:
        """What the deltas call this call, if there are any."""
        return self.call_id if self._last is not None else None

    def _tell_more(self) -> None:
        self._timer = None
        if not self._parts:
            return
        if self._last is None or self._last.taken:
            text, self._parts = "".join(self._parts), []
            self._tell(text, last=False)
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tell_more)

    def _tell(self, text: str, *, last: bool) -> None:
        for first in range(0, max(len(text), 1), DELTA_MAX_CHARS):
            until = first + DELTA_MAX_CHARS
            self._last = self._pending.say(self._delta(text[first:until], last=last and until >= len(text)))
        self._told_chars += len(text)

    def _delta(self, text: str, *, last: bool) -> TextDelta:
        job = self._pending.envelope.job
        number, self._number = self._number, self._number + 1
        return TextDelta(
            job_id=job.job_id,
            tenant=job.tenant,
            call_id=self.call_id,
            attempt=self._pending.failures + 1,
            number=number,
            text=text,
            last=last,
        )

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
