"""Where a slow call runs when it is no coroutine: in a thread, or in a process that can be killed.

The asyncio executor of `operators.offload` is the event loop itself: a `Work` that awaits. For a function that blocks,
a `Work` awaits `run` of one of these. `ThreadExecutor`: for calls that wait or release the GIL; a thread cannot be
killed, so after a timeout its place stays taken until the function returns. `ProcessExecutor`: for what computes,
crashes or hangs; a call that is cancelled or dies costs one process and one item, and the others go on.
"""

import asyncio
import os
import pickle
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TypeVar, cast

from prometheus_client import Counter, Gauge

from schemas.errors import Poison, Retryable

R = TypeVar("R")

BUSY_SECONDS = Counter(
    "headrace_executor_busy_seconds_total",
    "Seconds that workers have worked, added when a call ends: its rate over the number of workers is the busy share.",
    ["executor"],
)
WORKERS = Gauge(
    "headrace_executor_workers", "Threads or processes that the executor has at most, in this process.", ["executor"]
)

LENGTH = struct.Struct(">Q")
_BUFFER_BYTES = 1 << 20


class Workers:
    """What metrics say of an executor: how many workers it has until it is closed, and how long they have worked."""

    def __init__(self, executor: str, count: int) -> None:
        self._count = count
        self._busy_s = BUSY_SECONDS.labels(executor)
        self._gauge = WORKERS.labels(executor)
        self._gauge.inc(count)

    def call(self, function: Callable[..., R], *arguments: object) -> R:
        """Work in a worker that is this thread."""
        with self.busy():
            return function(*arguments)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """One worker works."""
        began = monotonic()
        try:
            yield
        finally:
            self.worked(monotonic() - began)

    def worked(self, seconds: float) -> None:
        """One worker has worked for so long."""
        self._busy_s.inc(seconds)

    def close(self) -> None:
        """There are no workers any more; may be repeated."""
        self._gauge.dec(self._count)
        self._count = 0


class ThreadExecutor:
    """`workers` threads of its own; metrics call it `name`. Use it from one event loop."""

    def __init__(self, workers: int, *, name: str = "threads") -> None:
        self._workers = Workers(name, workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="executor")

    async def run(self, function: Callable[..., R], *arguments: object) -> R:
        """Call `function` in a thread; what it raises is raised here. Waits for a free thread."""
        timed = partial(self._workers.call, function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, timed)

    async def close(self) -> None:
        """Start nothing more; threads that still work are left to end with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()


class ProcessExecutor:
    """`workers` processes, started when they are needed and replaced after `recycle_after` calls. Use it from one loop.

    Function, arguments and result travel as pickle, so the function must be importable: defined at the top level of a
    module. Processes end with this one, however it ends, and do not hear its Ctrl-C. Metrics call it `name`.
    """

    def __init__(self, workers: int, *, recycle_after: int = 200, name: str = "processes") -> None:
        self._workers = Workers(name, workers)
        self._slots = asyncio.Semaphore(workers)
        self._recycle_after = recycle_after
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, function: Callable[..., R], *arguments: object) -> R:
        """Call `function` in a process; cancelling kills it. What it raises is raised here.

        Raises Poison if the process died of it, naming signal or exit code; TypeError if something cannot be pickled;
        Retryable if no process could be started.
        """
        try:
            request = pickle.dumps((function, arguments))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"{function!r} or its arguments cannot go to another process: {error}") from error
        name = getattr(function, "__qualname__", repr(function))
        async with self._slots:
            worker = await self._take()
            try:
                with self._workers.busy():
                    raised, value = await worker.ask(request, name)
            except BaseException:
                self._end(worker)
                raise
            self._give_back(worker)
        if raised:
            raise cast("BaseException", value)
        return cast("R", value)

    async def _take(self) -> "_Worker":
        try:
            worker = self._idle.pop() if self._idle else await _Worker.start()
        except OSError as error:
            raise Retryable(f"no process could be started: {error}") from error
        self._busy.add(worker)
        return worker

    def _give_back(self, worker: "_Worker") -> None:
        if worker.served >= self._recycle_after:
            self._end(worker)
        else:
            self._busy.discard(worker)
            self._idle.append(worker)

    def _end(self, worker: "_Worker") -> None:
        self._busy.discard(worker)
        ending = asyncio.create_task(worker.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Kill all processes and wait until they are gone."""
        for worker in (*self._idle, *self._busy):
            self._end(worker)
        self._idle.clear()
        while self._ending:
            await asyncio.wait(self._ending)
        self._workers.close()


class _Worker:
    """One process, and how many calls it has served."""

    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a worker is reached through pipes on its standard input and output")
        self.served = 0
        self._process = process
        self._requests = process.stdin
        self._replies = process.stdout

    @classmethod
    async def start(cls) -> "_Worker":
        paths = os.pathsep.join(path for path in sys.path if path)  # so that it can import what this process can
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "connectors.executor_worker"),
                stdin=PIPE,
                stdout=PIPE,
                limit=_BUFFER_BYTES,
                env=os.environ | {"PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C on the terminal is for the owner alone
            )
        )

    async def ask(self, request: bytes, name: str) -> tuple[bool, object]:
        """Whether the call raised, and the exception or the result."""
        self.served += 1
        try:
            self._requests.write(LENGTH.pack(len(request)) + request)
            (length,) = LENGTH.unpack(await self._replies.readexactly(LENGTH.size))
            reply = await self._replies.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            how = _describe(await self._process.wait())
            raise Poison(f"{name}: its process {how} while it worked on this item") from error
        raised, value = pickle.loads(reply)  # noqa: S301  # from our own process, which ran trusted code
        return bool(raised), value

    async def end(self) -> None:
        """Kill it and wait until it is gone; what it had still written is dropped."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._requests.close()
        while await self._replies.read(_BUFFER_BYTES):
            pass
        await self._process.wait()


def _describe(exit_code: int) -> str:
    return f"ended with exit code {exit_code}" if exit_code >= 0 else f"was killed by {signal.Signals(-exit_code).name}"
