"""How calls share forward passes. The model here counts letters, so that each row tells which text it came from."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from connectors.embedder.batcher import Batcher, Model, Pass, Rows
from schemas.errors import Fatal, Isolated, Poison, Unavailable


@dataclass
class Counted(Pass):
    count: Callable[[], Rows]

    def ready(self) -> bool:
        return True

    def rows(self) -> Rows:
        return self.count()


@dataclass
class CountingModel(Model[list[str]]):
    """Keeps the batches that it was given; waits for the gate, refuses texts with a "!".

    most_letters: more at once do not fit into its memory.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)
    most_letters: int = 1_000_000
    broken: bool = False

    def count_tokens(self, text: str) -> int:
        if "untokenisable" in text:
            raise ValueError("the text of a document")
        return len(text)

    def prepare(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def launch(self, prepared: list[str]) -> Counted:
        self.batches.append(prepared)
        self.entered.set()
        self.gate.wait()
        return Counted(lambda: self.count(prepared))

    def count(self, texts: list[str]) -> Rows:
        if len(texts) * max(map(len, texts)) > self.most_letters:
            raise MemoryError
        if self.broken or any("!" in text for text in texts):
            raise ValueError("the text of a document")
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)

    def ran_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)


@asynccontextmanager
async def batching(
    model: Model[list[str]], *, batch_tokens: int = 1_000, linger_s: float = 0.0
) -> AsyncIterator[Batcher[list[str]]]:
    batcher = Batcher(model, dimensions=2, batch_tokens=batch_tokens, linger_s=linger_s)
    try:
        yield batcher
    finally:
        if isinstance(model, CountingModel):
            model.gate.set()
        await batcher.close()


async def blocked(model: CountingModel, batcher: Batcher[list[str]]) -> asyncio.Task[Rows]:
    """A call whose pass has begun and waits at the gate, so that what comes next waits together."""
    first = asyncio.create_task(batcher.embed(["first"]))
    await asyncio.to_thread(model.entered.wait)
    return first


async def waiting(batcher: Batcher[list[str]], *calls: Sequence[str]) -> list[asyncio.Task[Rows]]:
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


def test_of_a_pass_that_fails_only_the_text_to_blame_fails_and_stays_out_of_the_message() -> None:
    model = CountingModel()

    async def scenario() -> list[Rows | BaseException]:
        async with batching(model) as batcher:
            await blocked(model, batcher)
            tasks = await waiting(batcher, *(["b", "!a" if n == 5 else "aa"] for n in range(16)))
            model.gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(scenario())
    failed = outcomes.pop(5)
    assert isinstance(failed, Poison)
    assert "passage 2 of 2: ValueError" in str(failed)
    assert "text of a document" not in str(failed)
    assert all(isinstance(rows, np.ndarray) and rows.tolist() == [[1, 0], [2, 2]] for rows in outcomes)


@given(texts=st.lists(st.sampled_from(["a", "ba", "c!", "!"]), min_size=1, max_size=40), tokens=st.integers(1, 60))
def test_whichever_texts_are_bad_exactly_their_calls_fail(texts: list[str], tokens: int) -> None:
    model = CountingModel()
    model.gate.set()

    async def scenario() -> list[Rows | BaseException]:
        async with batching(model, batch_tokens=tokens) as batcher:
            return await asyncio.gather(*(batcher.embed([text]) for text in texts), return_exceptions=True)

    for text, outcome in zip(texts, asyncio.run(scenario()), strict=True):
        if "!" in text:
            assert isinstance(outcome, Poison)
        else:
            assert isinstance(outcome, np.ndarray)
            assert outcome.tolist() == [[len(text), text.count("a")]]


def test_out_of_memory_makes_this_pass_and_later_ones_smaller_and_fails_nothing() -> None:
    model = CountingModel(most_letters=100)
    model.gate.set()

    async def scenario() -> Rows:
        async with batching(model, batch_tokens=800) as batcher:
            await batcher.embed(["a" * 10] * 200)
            model.batches.clear()
            return await batcher.embed(["a" * 10] * 200)

    assert asyncio.run(scenario()).tolist() == [[10, 10]] * 200
    assert max(map(len, model.batches)) <= 10


def test_a_text_too_large_for_memory_is_retryable_and_without_any_memory_all_wait() -> None:
    model = CountingModel(most_letters=100)
    model.gate.set()

    async def scenario() -> None:
        async with batching(model, batch_tokens=800) as batcher:
            with pytest.raises(Isolated, match=r"passage 2 of 2 \(101 tokens\)"):
                await batcher.embed(["a", "a" * 101])
            model.most_letters = 0
            with pytest.raises(Unavailable):
                await batcher.embed(["a"])

    asyncio.run(scenario())


def test_a_model_that_fails_on_everything_is_not_the_fault_of_any_text() -> None:
    model = CountingModel(broken=True)
    model.gate.set()

    async def scenario() -> None:
        async with batching(model) as batcher:
            with pytest.raises(Fatal, match=r"ValueError.*start the flow again"):
                await batcher.embed(["a", "b"])
            model.broken = False
            assert (await batcher.embed(["a"])).tolist() == [[1, 1]]

    asyncio.run(scenario())


def test_a_text_that_cannot_be_tokenised_fails_alone() -> None:
    model = CountingModel()
    model.gate.set()

    async def scenario() -> list[Rows | BaseException]:
        async with batching(model) as batcher:
            calls = (batcher.embed(["a", "untokenisable"]), batcher.embed(["a"]))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    bad, good = asyncio.run(scenario())
    assert isinstance(bad, Poison)
    assert isinstance(good, np.ndarray)


def test_texts_that_come_within_the_linger_share_a_pass() -> None:
    model = CountingModel()
    model.gate.set()

    async def scenario() -> None:
        async with batching(model, batch_tokens=3, linger_s=60.0) as batcher:
            await asyncio.gather(*(batcher.embed(["a"]) for _ in range(3)))

    asyncio.run(scenario())
    assert model.batches == [["a", "a", "a"]]


def test_the_next_pass_is_begun_before_the_rows_of_the_last_are_fetched() -> None:
    model = CountingModel()
    model.gate.set()

    @dataclass
    class Slow(Counted):
        number: int

        def ready(self) -> bool:
            """Once the next one was begun, as on a GPU that has more to do; the last is waited for."""
            return len(model.batches) > self.number or self.number == 50

    class OnGpu(CountingModel):
        def launch(self, prepared: list[str]) -> Counted:
            return Slow(model.launch(prepared).count, len(model.batches))

    async def scenario() -> Rows:
        async with batching(OnGpu(), batch_tokens=2) as batcher:
            return await batcher.embed(["a"] * 100)

    assert asyncio.run(scenario()).tolist() == [[1, 1]] * 100


def test_choosing_passes_of_thousands_of_short_texts_takes_no_quadratic_time() -> None:
    model = CountingModel()
    model.gate.set()

    async def scenario() -> Rows:
        async with batching(model, batch_tokens=20_000) as batcher:
            return await batcher.embed(["a"] * 60_000)

    began = time.process_time()
    assert len(asyncio.run(scenario())) == 60_000
    assert time.process_time() - began < 5


def test_classed_error_of_the_model_keeps_its_class() -> None:
    class Refusing(CountingModel):
        def launch(self, prepared: list[str]) -> Counted:
            raise Poison(f"{len(prepared)} text can never be embedded")

    async def scenario() -> None:
        async with batching(Refusing()) as batcher:
            await batcher.embed(["a"])

    with pytest.raises(Poison, match="can never be embedded"):
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
    batcher = Batcher(model, dimensions=2, batch_tokens=100)
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


def test_metrics_tell_how_full_passes_are_and_how_long_the_model_has_worked() -> None:
    def told(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"headrace_{name}", labels) or 0.0

    async def embed() -> None:
        model = CountingModel()
        batcher = Batcher(model, dimensions=2, batch_tokens=100, name="counting")
        first = await blocked(model, batcher)
        assert told("executor_workers", executor="embedder") >= 1
        tasks = await waiting(batcher, ["a" * 40, "b" * 40])
        model.gate.set()
        await asyncio.gather(first, *tasks)
        await batcher.close()

    busy = told("executor_busy_seconds_total", executor="embedder")
    asyncio.run(embed())
    assert told("embed_batch_fill_ratio_count", model="counting") == 2
    assert told("embed_batch_fill_ratio_sum", model="counting") == pytest.approx(0.05 + 0.8)
    assert told("executor_busy_seconds_total", executor="embedder") > busy
