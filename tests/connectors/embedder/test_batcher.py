"""How calls share forward passes. The model here counts letters, so that each row tells which text it came from."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from connectors.embedder.batcher import Batcher, Rows
from schemas.errors import Fatal, Poison, Retryable


@dataclass
class CountingModel:
    """Keeps the batches that it was given; waits for the gate, refuses texts with a "!"."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)

    def forward(self, texts: Sequence[str]) -> Rows:
        self.batches.append(list(texts))
        self.entered.set()
        self.gate.wait()
        if any("!" in text for text in texts):
            raise MemoryError("the text of a document")
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)


@asynccontextmanager
async def batching(model: CountingModel, *, batch_tokens: int = 1_000) -> AsyncIterator[Batcher]:
    batcher = Batcher(model.forward, len, dimensions=2, batch_tokens=batch_tokens)
    try:
        yield batcher
    finally:
        model.gate.set()
        await batcher.close()


async def blocked(model: CountingModel, batcher: Batcher) -> asyncio.Task[Rows]:
    """A call whose pass has begun and waits at the gate, so that what comes next waits together."""
    first = asyncio.create_task(batcher.embed(["first"]))
    await asyncio.to_thread(model.entered.wait)
    return first


async def waiting(batcher: Batcher, *calls: Sequence[str]) -> list[asyncio.Task[Rows]]:
    tasks = [asyncio.create_task(batcher.embed(texts)) for texts in calls]
    await asyncio.sleep(0)  # each task runs up to its wait
    return tasks


def test_calls_that_wait_together_share_one_pass() -> None:
    model = CountingModel()

    async def scenario() -> list[Rows]:
        async with batching(model) as batcher:
            await blocked(model, batcher)
            tasks = await waiting(batcher, ["a"], ["bb", "aa"], ["aba"])
            model.gate.set()
            return await asyncio.gather(*tasks)

    rows = asyncio.run(scenario())
    assert len(model.batches) == 2
    assert [r.tolist() for r in rows] == [[[1, 1]], [[2, 0], [2, 2]], [[3, 2]]]


@pytest.mark.parametrize("batch_tokens", [1, 10, 40, 100])
def test_pass_stays_within_its_tokens_unless_one_text_is_longer(batch_tokens: int) -> None:
    model = CountingModel()
    model.gate.set()
    texts = ["a" * (1 + n * 7 % 20) for n in range(50)]

    async def scenario() -> Rows:
        async with batching(model, batch_tokens=batch_tokens) as batcher:
            return await batcher.embed(texts)

    assert asyncio.run(scenario())[:, 0].tolist() == [len(text) for text in texts]
    for batch in model.batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= batch_tokens


def test_texts_of_a_pass_are_alike_in_length() -> None:
    model = CountingModel()

    async def scenario() -> None:
        async with batching(model, batch_tokens=400) as batcher:
            await blocked(model, batcher)
            (task,) = await waiting(batcher, ["a", "b" * 100] * 4)
            model.gate.set()
            await task

    asyncio.run(scenario())
    assert [sorted(map(len, batch)) for batch in model.batches[1:]] == [[1, 1, 1, 1], [100, 100, 100, 100]]


def test_short_call_does_not_wait_behind_all_of_a_long_one() -> None:
    model = CountingModel()

    async def scenario() -> None:
        async with batching(model, batch_tokens=100) as batcher:
            await blocked(model, batcher)
            book, question = await waiting(batcher, ["x" * 10] * 2_000, ["question??"])
            model.gate.set()
            await asyncio.gather(book, question)

    asyncio.run(scenario())
    assert len(model.batches) > 200
    assert any("question??" in batch for batch in model.batches[:10])


def test_cancelled_call_costs_no_pass() -> None:
    model = CountingModel()

    async def scenario() -> None:
        async with batching(model) as batcher:
            first = await blocked(model, batcher)
            gone, stays = await waiting(batcher, ["gone"], ["stays"])
            gone.cancel()
            await asyncio.wait([gone])
            model.gate.set()
            await asyncio.gather(first, stays)

    asyncio.run(scenario())
    assert model.batches == [["first"], ["stays"]]


def test_caller_that_leaves_during_its_pass_harms_nobody() -> None:
    model = CountingModel()

    async def scenario() -> Rows:
        async with batching(model) as batcher:
            first = await blocked(model, batcher)
            first.cancel()
            await asyncio.wait([first])
            model.gate.set()
            return await batcher.embed(["aa"])

    assert asyncio.run(scenario()).tolist() == [[2, 2]]


def test_failed_pass_is_retryable_for_those_in_it_and_its_text_stays_out_of_the_message() -> None:
    model = CountingModel()

    async def scenario() -> list[Rows | BaseException]:
        async with batching(model, batch_tokens=10) as batcher:
            await blocked(model, batcher)
            tasks = await waiting(batcher, ["!", "b"], ["c" * 50])
            model.gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    failed, fine = asyncio.run(scenario())
    assert isinstance(failed, Retryable)
    assert "MemoryError" in str(failed)
    assert "text of a document" not in str(failed)
    assert isinstance(fine, np.ndarray)


def test_model_goes_on_after_a_failed_pass() -> None:
    model = CountingModel()
    model.gate.set()

    async def scenario() -> Rows:
        async with batching(model) as batcher:
            with pytest.raises(Retryable):
                await batcher.embed(["!"])
            return await batcher.embed(["a"])

    assert asyncio.run(scenario()).tolist() == [[1, 1]]


def test_classed_error_of_the_model_keeps_its_class() -> None:
    def refuse(_: Sequence[str]) -> Rows:
        raise Poison("this text can never be embedded")

    async def scenario() -> None:
        batcher = Batcher(refuse, len, dimensions=2, batch_tokens=10)
        try:
            await batcher.embed(["a"])
        finally:
            await batcher.close()

    with pytest.raises(Poison):
        asyncio.run(scenario())


def test_closing_refuses_what_waits_and_what_comes() -> None:
    model = CountingModel()

    async def scenario() -> list[Rows | BaseException]:
        async with batching(model) as batcher:
            first = await blocked(model, batcher)
            tasks = await waiting(batcher, ["waits"])
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0)
            model.gate.set()
            await closing
            with pytest.raises(Fatal, match="closed"):
                await batcher.embed(["late"])
            return await asyncio.gather(first, *tasks, return_exceptions=True)

    first, waited = asyncio.run(scenario())
    assert isinstance(first, np.ndarray)
    assert isinstance(waited, Fatal)


def test_callers_on_several_event_loops_get_their_rows() -> None:
    model = CountingModel()
    model.gate.set()
    batcher = Batcher(model.forward, len, dimensions=2, batch_tokens=100)
    found: dict[int, float] = {}

    def call(n: int) -> None:
        found[n] = float(asyncio.run(batcher.embed(["a" * n]))[0, 0])

    threads = [threading.Thread(target=call, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(batcher.close())
    assert found == {n: n for n in range(1, 9)}
