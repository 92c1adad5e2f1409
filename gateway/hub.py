"""Who watches which job: changes cross from the projection's thread to the event loop, one call per batch.

Guarantee: whoever watches before reading what was so far misses nothing, and may see some of it twice, which its
position tells. Memory: of each watcher at most MOST_EVENTS or MOST_BYTES that it has not taken; one that is slower is
sent away, and comes back with its position.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from gateway.told import Change

MOST_EVENTS = 1000
"""Minutes of a model's text, which comes at most every 100 ms."""
MOST_BYTES = 4 * 1024 * 1024
"""An answer is at most 1 MB, and was told in pieces before."""


class StreamEnds(Exception):
    """A watcher is sent away before its job has ended; it may come back with its position."""


class TooSlow(StreamEnds):
    """It did not take what it was told."""


class Watcher:
    """One pair of eyes on one job, on the event loop alone."""

    def __init__(self) -> None:
        self._queue: list[Change] = []
        self._events = 0
        self._bytes = 0
        self._reason: StreamEnds | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def changes(self, timeout_s: float) -> Sequence[Change]:
        """What has come, in order; none after `timeout_s` seconds. Raises StreamEnds."""
        if not self._queue and self._reason is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        if self._reason is not None:
            raise self._reason
        taken, self._queue = self._queue, []
        self._events = self._bytes = 0
        return taken

    def tell(self, change: Change) -> None:
        """Queue it, unless too much is waiting already."""
        if self._reason is not None:
            return
        self._queue.append(change)
        self._events += 1 + len(change.told)
        self._bytes += sum([len(told.data) for told in change.told])
        if self._events > MOST_EVENTS or self._bytes > MOST_BYTES:
            self.end(TooSlow(f"{self._events} events, {self._bytes} bytes were not taken"))
        else:
            self._wake()

    def end(self, reason: StreamEnds) -> None:
        """Send the watcher away."""
        self._queue = []
        self._reason = reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """All watchers of one gateway, on one event loop."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = 0
        self._closed = False
        self.behind_s = 0.0  # how old what the projection reads now is; it says so

    @property
    def watching(self) -> int:
        """How many watch now."""
        return self._count

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watcher]:
        """Be told what changes about a job, from now on."""
        self._loop = asyncio.get_running_loop()
        watcher = Watcher()
        if self._closed:
            watcher.end(StreamEnds("the gateway ends"))
        self._watchers.setdefault(job_id, set()).add(watcher)
        self._count += 1
        try:
            yield watcher
        finally:
            self._count -= 1
            left = self._watchers[job_id]
            left.discard(watcher)
            if not left:
                del self._watchers[job_id]

    def publish(self, changes: Sequence[Change]) -> None:
        """Tell whoever watches; from any thread."""
        watched = self._watchers  # who comes after this look finds the changes in the read model
        wanted = [change for change in changes if change.job_id in watched]
        if wanted:
            self._on_loop(partial(self._deliver, wanted))

    def send_away(self) -> None:
        """End all streams that are open now, as what they were told holds no more; from any thread."""
        self._on_loop(partial(self._end_all, StreamEnds("the topics were read anew")))

    def close(self) -> None:
        """End all streams, and those to come at once; from any thread."""
        self._closed = True
        self._on_loop(partial(self._end_all, StreamEnds("the gateway ends")))

    def _on_loop(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody watches any more
                self._loop.call_soon_threadsafe(call)

    def _deliver(self, changes: Sequence[Change]) -> None:
        for change in changes:
            for watcher in self._watchers.get(change.job_id, ()):
                watcher.tell(change)

    def _end_all(self, reason: StreamEnds) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.end(reason)
