"""Micro-batching: calls that wait together share forward passes, on one thread that alone uses the model.

Each pass starts from the text that has waited longest and adds those nearest to it in length, so that none starves and
little of the batch is padding. Calls take turns, so that a question does not wait behind all the chunks of a book. A
call whose caller has gone is skipped.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schemas.errors import Fatal, HeadraceError, Retryable

Rows = npt.NDArray[np.float32]

_WINDOW_PASSES = 2  # to choose a pass from: enough to find equal lengths, little enough for a question to wait for


@dataclass(eq=False)
class _Call:
    texts: Sequence[str]
    rows: Rows
    taken: int = 0  # texts that have entered the window
    embedded: int = 0
    done: Future[Rows] = field(default_factory=Future)

    def succeed(self) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(self.rows)

    def fail(self, error: HeadraceError) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Text:
    call: _Call
    index: int
    tokens: int


class Batcher:
    """Runs `forward` for any number of callers, on any event loops.

    `forward` returns a vector per text, `count_tokens` the length of a text as the model sees it. `batch_tokens` bounds
    a pass: texts times the tokens of the longest; a single text may be longer.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[str]], Rows],
        count_tokens: Callable[[str], int],
        *,
        dimensions: int,
        batch_tokens: int,
    ) -> None:
        self._forward = forward
        self._count_tokens = count_tokens
        self._dimensions = dimensions
        self._batch_tokens = batch_tokens
        self._wake = threading.Condition()
        self._calls: deque[_Call] = deque()  # those with texts that are not in the window yet
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
        self._thread.start()

    async def embed(self, texts: Sequence[str]) -> Rows:
        """Vectors of `texts`, in their order.

        Raises Retryable if a pass failed, whoever's text was to blame, since the next may be another mix of texts;
        Fatal once closed.
        """
        call = _Call(texts, np.empty((len(texts), self._dimensions), np.float32))
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
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        window: list[_Text] = []
        while True:
            window = [text for text in window if not text.call.done.done()]
            with self._wake:
                self._wake.wait_for(lambda: window or self._calls or self._closed)  # noqa: B023 called before it changes
                if self._closed:
                    break
            window += self._read(_WINDOW_PASSES * self._batch_tokens - sum(text.tokens for text in window))
            if window:
                batch = self._choose(window)
                window = [text for text in window if text not in batch]
                self._embed(batch)
        for call in {text.call for text in window} | {call for call in self._calls if not call.done.done()}:
            call.fail(_closed())

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
            return _Text(call, index, self._count_tokens(call.texts[index]))
        except BaseException as error:  # noqa: BLE001 the thread must outlive a panic of the tokenizer
            if not call.done.done():
                call.fail(_failed(error))
            return None

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

    def _embed(self, batch: Sequence[_Text]) -> None:
        try:
            rows = self._forward([text.call.texts[text.index] for text in batch])
        except BaseException as error:  # noqa: BLE001 the thread must outlive whatever the model raises
            for call in {text.call for text in batch}:
                call.fail(_failed(error))
            return
        for text, row in zip(batch, rows, strict=True):
            text.call.rows[text.index] = row
            text.call.embedded += 1
            if text.call.embedded == len(text.call.texts):
                text.call.succeed()


def _closed() -> Fatal:
    return Fatal("the embedder is closed")


def _failed(error: BaseException) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return error
    failed = Retryable(f"a forward pass of the embedding model failed: {type(error).__name__}")
    failed.__cause__ = error  # its message may quote a text, so it stays out of ours
    return failed
