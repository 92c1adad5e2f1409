"""One asyncio loop in a thread of its own, for all slow calls of a process."""

import asyncio
from asyncio import Task
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from threading import Thread
from typing import Self, TypeVar

R = TypeVar("R")

_CLEANUP_S = 5.0  # for what is cancelled to close its connections


class EventLoop:
    """Runs coroutines beside the threads that feed them. Connectors that keep connections live on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._running: set[Task[None]] = set()  # asyncio itself holds tasks by weak references only
        self._thread = Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[object, object, R]) -> Future[R]:
        """Start `work` on the loop; never blocks."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def start(self, works: "Iterable[Coroutine[object, object, None]]", ended: Callable[[Task[None]], None]) -> None:
        """Start many at once, for a fraction of the price; `ended` is called, on the loop, with each that ends."""
        batch = list(works)

        def start_all() -> None:
            for work in batch:
                task = self._loop.create_task(work)
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                task.add_done_callback(ended)

        self._loop.call_soon_threadsafe(start_all)

    def run(self, work: Coroutine[object, object, R], *, timeout_s: float) -> R:
        """Run `work` on the loop and wait for it; TimeoutError after `timeout_s` seconds, and the work is cancelled."""
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def cancel_started(self) -> None:
        """Cancel what `start` has started and what still runs of it, and wait until it is gone."""

        async def cancel() -> None:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(set(self._running), timeout=_CLEANUP_S)

        self.submit(cancel()).result()

    def close(self) -> None:
        """Cancel what still runs, give it a moment to clean up, and end the thread."""

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CLEANUP_S) if tasks else None
            await self._loop.shutdown_asyncgens()

        self.submit(cancel_all()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
