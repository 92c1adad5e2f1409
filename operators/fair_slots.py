"""A bound on what runs at once, shared fairly: whoever waits is served round-robin by tenant."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSlots:
    """`capacity` slots. While some wait, each free slot goes to the next tenant in turn, and within it to the first.

    One tenant's burst of a thousand delays another's single message by one call, not by a thousand. Use it from one
    event loop.
    """

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of their turns

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """Hold a slot while entered."""
        await self.acquire(tenant)
        try:
            yield
        finally:
            self.release()

    async def acquire(self, tenant: str) -> None:
        """Wait for a slot; whoever got one must `release` it."""
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # the slot came just then
            raise

    def release(self) -> None:
        """Hand a slot on."""
        while self._waiting:
            tenant, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            del self._waiting[tenant]
            if turns:
                self._waiting[tenant] = turns  # its next turn comes after everybody else's
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
