"""Models are loaded when they are needed, and once."""

import asyncio
import threading
from pathlib import Path

import pytest

from connectors.embedder.port import Embedder
from connectors.spaces import IndexedSpaces
from connectors.vector_index.edge import EdgeIndex
from tests.chaos.victim import HashEmbedder


def test_a_question_that_is_given_up_while_the_model_is_loaded_loads_no_second_one(tmp_path: Path) -> None:
    let_it_load = threading.Event()
    loaded: list[Embedder] = []

    def load() -> Embedder:
        let_it_load.wait(10.0)
        loaded.append(HashEmbedder())
        return loaded[-1]

    async def give_up_and_ask_again() -> Embedder:
        vectors = EdgeIndex(tmp_path)
        spaces = IndexedSpaces(vectors, [load])
        assert loaded == []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(spaces.of("documents"), 0.05)
        second = asyncio.create_task(spaces.of("documents"))
        let_it_load.set()
        space = await second
        await vectors.close()
        return space.embedder

    assert [asyncio.run(give_up_and_ask_again())] == loaded
