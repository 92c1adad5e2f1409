"""Micro-batching: calls that wait together share forward passes of one model.

Each pass starts from the text that has waited longest and adds those nearest to it in length, so that none starves and
little of the batch is padding. Calls take turns, so that a question does not wait behind all the chunks of a book. One
thread chooses and tokenises the next pass while another runs the present one. A call whose caller has gone is skipped.

A pass that fails is halved until the texts that are to blame are found: they alone fail, each with its call.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import structlog
from prometheus_client import Histogram

from connectors.executors import Workers
from schemas.errors import Fatal, HeadraceError, Isolated, Poison, Unavailable

P = TypeVar("P")  # what a model makes of texts before a pass: token ids, padded

Rows = npt.NDArray[np.float32]

_WINDOW_PASSES = 2  # to choose a pass from: enough to find equal lengths, little enough for a question to wait for
_LEAST_BATCH_TOKENS = 64
_POLL_S = 0.0005  # between looks at a pass on a GPU; those on a CPU are over when they are begun
_PROBE = "Is the model alive?"

log = structlog.get_logger()

FILL = Histogram(
    "headrace_embed_batch_fill_ratio",
    "Of each forward pass: tokens of its texts over the tokens that it could take, padding not counted.",
    ["model"],
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)


class Pass(Protocol):
    """A forward pass that was begun."""

    def ready(self) -> bool:
        """Whether `rows` returns at once."""
        ...

    def rows(self) -> Rows:
        """Wait for it: one vector per text."""
        ...


class Model(Protocol[P]):
    """What passes are made with. Each method may raise anything; `count_tokens` and `prepare` run beside `launch`."""

    def count_tokens(self, text: str) -> int:
        """The length of a text as the model sees it."""
        ...

    def prepare(self, texts: Sequence[str]) -> P:
        """Tokenise texts for one pass."""
        ...

    def launch(self, prepared: P) -> Pass:
        """Begin a pass."""
        ...

    def ran_out_of_memory(self, error: BaseException) -> bool:
        """Whether a pass failed for its size, and let go of what memory can be freed."""
        ...


@dataclass(eq=False)
class _Call:
    texts: Sequence[str]
    rows: Rows
    came_at: float
    taken: int = 0  # texts that have entered the window
    embedded: int = 0
    done: Future[Rows] = field(default_factory=Future)
    ending: threading.Lock = field(default_factory=threading.Lock)  # both threads may fail it

    def succeed(self) -> None:
        with self.ending:
            if not self.done.done() and self.done.set_running_or_notify_cancel():
                self.done.set_result(self.rows)

    def fail(self, error: HeadraceError) -> None:
        with self.ending:
            if not self.done.done() and self.done.set_running_or_notify_cancel():
                self.done.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Text:
    call: _Call
    index: int
    tokens: int

    @property
    def text(self) -> str:
        return self.call.texts[self.index]

    def place(self) -> str:
        return f"passage {self.index + 1} of {len(self.call.texts)}"


class Batcher(Generic[P]):
    """Runs `model` for any number of callers, on any event loops.

    batch_tokens: bounds a pass: texts times the tokens of the longest; a single text may be longer. Halved whenever a
        pass ran out of memory.
    linger_s: how long, at most, a text waits for others to fill its pass while the model has nothing else to do.
    name: what metrics call the model.
    """

    def __init__(
        self, model: Model[P], *, dimensions: int, batch_tokens: int, linger_s: float = 0.0, name: str = "model"
    ) -> None:
        self._fill = FILL.labels(name)
        self._worker = Workers("embedder", 1)
        self._busy_since = 0.0  # of the second thread
        self._model = model
        self._dimensions = dimensions
        self._batch_tokens = batch_tokens
        self._linger_s = linger_s
        self._wake = threading.Condition()
        self._calls: deque[_Call] = deque()  # those with texts that are not in the window yet
        self._closed = False
        self._ready: Queue[tuple[list[_Text], P | None] | None] = Queue(maxsize=1)
        self._threads = (
            threading.Thread(target=self._prepare_passes, name="embedder-tokenizer", daemon=True),
            threading.Thread(target=self._run_passes, name="embedder", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    async def embed(self, texts: Sequence[str]) -> Rows:
        """Vectors of `texts`, in their order.

        Raises Poison if the model fails on one of them, and on it alone; Isolated if one does not fit into memory;
        Unavailable while there is no memory for anything; Fatal once the model is broken, or closed.
        """
        call = _Call(texts, np.empty((len(texts), self._dimensions), np.float32), time.monotonic())
        if not texts:
            return call.rows
        with self._wake:
            if self._closed:
                raise _closed()
            self._calls.append(call)
            self._wake.notify()
        return await asyncio.wrap_future(call.done)

    async def close(self) -> None:
        """Let the pass that runs finish and refuse what waits."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._worker.close()

    # The first thread: which texts go together.

    def _prepare_passes(self) -> None:
        window: list[_Text] = []
        while True:
            window = [text for text in window if not text.call.done.done()]
            with self._wake:
                self._wake.wait_for(lambda: window or self._calls or self._closed)  # noqa: B023  # called before it changes
                if self._closed:
                    break
            window += self._read(_WINDOW_PASSES * self._batch_tokens - _tokens(window))
            if not window or self._linger(window):
                continue
            batch = self._choose(window)
            chosen = set(batch)
            window = [text for text in window if text not in chosen]
            self._ready.put((batch, self._prepared(batch)))
        _refuse({text.call for text in window} | set(self._calls))
        self._ready.put(None)

    def _read(self, tokens: int) -> list[_Text]:
        """Texts of at least `tokens` tokens together, if there are that many, one of each call in turn."""
        read: list[_Text] = []
        while tokens > 0 and (taken := self._take()):
            if text := self._measure(*taken):
                tokens -= text.tokens
                read.append(text)
        return read

    def _take(self) -> tuple[_Call, int] | None:
        with self._wake:
            while self._calls:
                call = self._calls.popleft()
                if call.done.done():
                    continue
                call.taken += 1
                if call.taken < len(call.texts):
                    self._calls.append(call)
                return call, call.taken - 1
        return None

    def _measure(self, call: _Call, index: int) -> _Text | None:
        try:
            return _Text(call, index, self._model.count_tokens(call.texts[index]))
        except BaseException as error:  # noqa: BLE001  # the thread must outlive a panic of the tokenizer
            call.fail(_poison(_Text(call, index, 0), error))
            return None

    def _linger(self, window: Sequence[_Text]) -> bool:
        """Wait for more texts, if there is room for them and time; whether any may have come."""
        left_s = window[0].call.came_at + self._linger_s - time.monotonic()
        if left_s <= 0 or _tokens(window) >= self._batch_tokens:
            return False
        with self._wake:
            return bool(self._wake.wait_for(lambda: self._calls or self._closed, left_s))

    def _choose(self, window: Sequence[_Text]) -> list[_Text]:
        oldest = window[0]
        batch: list[_Text] = []
        longest = 0
        for text in sorted(window, key=lambda text: abs(text.tokens - oldest.tokens)):
            longest = max(longest, text.tokens)
            if batch and (len(batch) + 1) * longest > self._batch_tokens:
                break
            batch.append(text)
        return batch

    def _prepared(self, batch: Sequence[_Text]) -> P | None:
        with suppress(BaseException):  # the other thread will meet it again, and finds out whose fault it is
            return self._model.prepare([text.text for text in batch])
        return None

    # The second thread: passes, one after the other, the next begun before the results of the last are fetched.

    def _run_passes(self) -> None:
        running: tuple[list[_Text], Pass] | None = None
        while True:
            if running is not None and running[1].ready():
                self._finish(running)
                running = None
            try:
                item = self._ready.get(timeout=None if running is None else _POLL_S)
            except Empty:
                continue
            if item is None:
                self._finish(running)
                return
            chosen, prepared = item
            batch = [text for text in chosen if not text.call.done.done()]
            if self._closed:
                _refuse({text.call for text in batch})
            elif batch:
                if running is None:
                    self._busy_since = time.monotonic()
                self._fill.observe(_tokens(batch) / self._batch_tokens)
                launched = self._launch(batch, prepared if len(batch) == len(chosen) else None)
                self._finish(running)
                running = None if launched is None else (batch, launched)
                if running is None:
                    self._tell_busy()

    def _launch(self, batch: list[_Text], prepared: P | None) -> Pass | None:
        try:
            if prepared is None:
                prepared = self._model.prepare([text.text for text in batch])
            return self._model.launch(prepared)
        except BaseException as error:  # noqa: BLE001  # the thread must outlive whatever the model raises
            self._isolate(batch, error)
            return None

    def _finish(self, running: tuple[list[_Text], Pass] | None) -> None:
        if running is None:
            return
        batch, launched = running
        try:
            rows = launched.rows()
        except BaseException as error:  # noqa: BLE001  # same
            self._isolate(batch, error)
        else:
            _deliver(batch, rows)
        self._tell_busy()

    def _tell_busy(self) -> None:
        now = time.monotonic()
        self._worker.worked(now - self._busy_since)
        self._busy_since = now

    def _isolate(self, batch: Sequence[_Text], error: BaseException) -> None:
        """Embed what can be embedded of a pass that failed, and fail the calls of the rest."""
        failed: list[tuple[_Text, BaseException]] = []
        others_work = self._halve(batch, error, failed) or self._alive()
        for text, reason in failed:
            if isinstance(reason, HeadraceError):
                text.call.fail(reason)
            elif self._model.ran_out_of_memory(reason):
                kind = Isolated if others_work else Unavailable
                text.call.fail(_caused(kind(f"{text.place()} ({text.tokens} tokens) does not fit into memory"), reason))
            elif others_work:
                text.call.fail(_poison(text, reason))
            else:
                broken = f"the embedding model fails on everything ({type(reason).__name__}): start the flow again"
                text.call.fail(_caused(Fatal(broken), reason))

    def _halve(self, batch: Sequence[_Text], error: BaseException, failed: list[tuple[_Text, BaseException]]) -> bool:
        """Whether any text of the batch could be embedded; those that could not are added to `failed`."""
        if self._model.ran_out_of_memory(error) and len(batch) > 1:
            self._shrink(len(batch) * max(text.tokens for text in batch))
        if len(batch) == 1:
            failed.append((batch[0], error))
            return False
        middle = len(batch) // 2
        some = False
        for half in (batch[:middle], batch[middle:]):
            try:
                rows = self._run([text.text for text in half])
            except BaseException as again:  # noqa: BLE001  # same
                some |= self._halve(half, again, failed)
            else:
                _deliver(half, rows)
                some = True
        return some

    def _shrink(self, tokens: int) -> None:
        smaller = max(_LEAST_BATCH_TOKENS, min(self._batch_tokens, tokens) // 2)
        if smaller < self._batch_tokens:
            log.warning("a forward pass ran out of memory: smaller ones from now on", batch_tokens=smaller)
            self._batch_tokens = smaller

    def _alive(self) -> bool:
        try:
            self._run([_PROBE])
        except BaseException:  # noqa: BLE001  # same
            return False
        return True

    def _run(self, texts: Sequence[str]) -> Rows:
        return self._model.launch(self._model.prepare(texts)).rows()


def _tokens(window: Sequence[_Text]) -> int:
    return sum(text.tokens for text in window)


def _deliver(batch: Sequence[_Text], rows: Rows) -> None:
    for text, row in zip(batch, rows, strict=True):
        text.call.rows[text.index] = row
        text.call.embedded += 1
        if text.call.embedded == len(text.call.texts):
            text.call.succeed()


def _refuse(calls: set[_Call]) -> None:
    for call in calls:
        call.fail(_closed())


def _closed() -> Fatal:
    return Fatal("the embedder is closed")


def _poison(text: _Text, error: BaseException) -> HeadraceError:
    return _caused(Poison(f"the embedding model fails on {text.place()}: {type(error).__name__}"), error)


def _caused(failed: HeadraceError, error: BaseException) -> HeadraceError:
    failed.__cause__ = error  # its message may quote a text, so it stays out of ours
    return failed
