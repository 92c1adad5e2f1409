"""Texts embedded before are not embedded again; a cache in any condition changes nothing but the time."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from connectors.embedder.batcher import Rows
from connectors.embedder.cache import CachedEmbedder
from schemas.errors import Poison
from tests.chaos.victim import HashEmbedder


class Counting(HashEmbedder):
    def __init__(self, model: str = "hash-1") -> None:
        self.model = model
        self.asked: list[list[str]] = []

    async def embed(self, texts: Sequence[str]) -> Rows:
        self.asked.append(list(texts))
        if any("!" in text for text in texts):
            raise Poison("refused")
        return await super().embed(texts)


def embed(path: Path, inner: Counting, *calls: Sequence[str], max_bytes: int = 1_000_000) -> list[Rows]:
    """One process: its calls, one after the other."""

    async def run() -> list[Rows]:
        cached = CachedEmbedder(inner, path, max_bytes=max_bytes)
        try:
            return [await cached.embed(texts) for texts in calls]
        finally:
            await cached.close()

    return asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "embeddings.sqlite"


def test_a_text_is_embedded_once_in_this_process_and_in_later_ones(path: Path) -> None:
    first, second = Counting(), Counting()
    (rows,) = embed(path, first, ["a", "b", "a"])
    (again, more) = embed(path, second, ["b", "a"], ["c", "a"])
    assert (first.asked, second.asked) == ([["a", "b"]], [["c"]])
    assert rows.shape == (3, 16)
    assert np.array_equal(rows[[1, 0]], again)
    assert np.array_equal(more[1], rows[0])


def test_another_model_knows_nothing_of_it(path: Path) -> None:
    embed(path, Counting("one"), ["a"])
    other = Counting("other")
    embed(path, other, ["a"])
    assert other.asked == [["a"]]


def test_no_texts_and_strange_ones_are_embedded_as_ever(path: Path) -> None:
    inner = Counting()
    none, empty = embed(path, inner, [], [""])
    assert (none.shape, empty.shape) == ((0, 16), (1, 16))
    assert inner.asked == [[""]]


def test_what_the_model_refuses_is_not_remembered(path: Path) -> None:
    inner = Counting()
    with pytest.raises(Poison):
        embed(path, inner, ["a", "!"])
    embed(path, inner, ["a"])
    assert inner.asked == [["a", "!"], ["a"]]


def test_the_file_holds_no_text(path: Path) -> None:
    embed(path, Counting(), ["a very secret sentence"])
    assert b"secret" not in b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_beyond_its_size_the_oldest_are_forgotten(path: Path) -> None:
    inner = Counting()
    bytes_of_fifty = 50 * (4 * 16 + 120)
    embed(path, inner, *([f"text {n}"] for n in range(300)), max_bytes=bytes_of_fifty)
    with closing(sqlite3.connect(path)) as at:
        (held,) = at.execute("SELECT count(*) FROM vectors").fetchone()
    assert 40 <= held <= 51
    inner.asked.clear()
    embed(path, inner, ["text 0"], ["text 299"], max_bytes=bytes_of_fifty)
    assert inner.asked == [["text 0"]]


@pytest.mark.parametrize("content", [b"this is no database" * 100, None], ids=["damaged", "no file"])
def test_a_cache_that_cannot_be_opened_is_one_line_in_the_log(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    inner = Counting()
    with capture_logs() as logs:
        embed(path, inner, ["a"], ["a"])
    assert inner.asked == [["a"], ["a"]]
    (line,) = logs
    assert "embedding cache is off" in line["event"]
    assert line["file"] == str(path)


def test_a_damaged_vector_is_made_anew(path: Path) -> None:
    inner = Counting()
    embed(path, inner, ["a"], ["b"])
    with closing(sqlite3.connect(path)) as at, at:
        at.execute("UPDATE vectors SET vector = x'0000c07f' WHERE number = 1")
        at.execute("UPDATE vectors SET vector = ? WHERE number = 2", (b"\x00\x00\xc0\x7f" * 16,))  # NaN
    (rows,) = embed(path, inner, ["a", "b"])
    assert inner.asked[2:] == [["a", "b"]]
    assert np.isfinite(rows).all()


def test_while_another_process_holds_the_file_texts_are_embedded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.embedder.cache._BUSY_TIMEOUT_S", 0.05)
    inner = Counting()
    embed(path, inner, ["a"])
    with closing(sqlite3.connect(path, isolation_level=None)) as at:
        at.execute("BEGIN EXCLUSIVE")
        embed(path, inner, ["b"], ["a"])
    embed(path, inner, ["b"])
    assert inner.asked == [["a"], ["b"], ["b"]]


def test_processes_share_the_file(path: Path) -> None:
    async def run() -> None:
        caches = [CachedEmbedder(Counting(), path, max_bytes=10_000_000) for _ in range(6)]
        await asyncio.gather(*(cached.embed([f"{n % 7}", f"{n}"]) for cached in caches for n in range(30)))
        for cached in caches:
            await cached.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert logs == []
    inner = Counting()
    embed(path, inner, [str(n) for n in range(30)])
    assert inner.asked == []
