"""What the embedded index promises beside the contract: one opener, and nothing lost to kill -9."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point
from schemas.errors import Fatal
from tests.connectors.vector_index.conftest import DIMENSIONS, MakePoint

ROOT = Path(__file__).parents[3]

OPENER = """
import asyncio, sys
from pathlib import Path
from connectors.vector_index.edge import EdgeIndex
index = EdgeIndex(Path(sys.argv[1]))
asyncio.run(index.open("docs", 8))
print("open", flush=True)
sys.stdin.read()
"""

# Each acknowledgement is printed only after the upsert returned; three writers make groups of writes.
WRITER = """
import asyncio, itertools, sys
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5
from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point

async def write(index, start):
    for n in itertools.count(start, 3):
        vector = bytes(4 * 7) + b"\\0\\0\\x80\\x3f"
        point = Point(str(uuid5(NAMESPACE_URL, str(n))), "acme", "report", None, n, None, "x" * 500, vector)
        await index.upsert("docs", [point])
        print(n, flush=True)

async def main():
    index = EdgeIndex(Path(sys.argv[1]))
    await index.open("docs", 8)
    await asyncio.gather(*(write(index, start) for start in range(3)))

asyncio.run(main())
"""


def start(script: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def listed(directory: Path) -> tuple[Point, ...]:
    async def scenario() -> tuple[Point, ...]:
        index = EdgeIndex(directory)
        try:
            return await index.list_document("docs", tenant="acme", document_id="report")
        finally:
            await index.close()

    return asyncio.run(scenario())


def write(directory: Path, points: list[Point]) -> None:
    async def scenario() -> None:
        index = EdgeIndex(directory)
        await index.open("docs", DIMENSIONS)
        await index.upsert("docs", points)
        await index.close()

    asyncio.run(scenario())


def test_second_opener_in_another_process_is_told_to_use_a_server(tmp_path: Path) -> None:
    with start(OPENER, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(Fatal, match=r"already open in another process.*headrace run .*HEADRACE_QDRANT_URL") as told:
            EdgeIndex(tmp_path)
        assert str(tmp_path) in str(told.value)
        holder.kill()


def test_second_opener_in_the_same_process_is_refused(tmp_path: Path) -> None:
    first = EdgeIndex(tmp_path)
    with pytest.raises(Fatal, match="already open"):
        EdgeIndex(tmp_path)
    asyncio.run(first.close())


def test_directory_is_free_after_close(tmp_path: Path, point: MakePoint) -> None:
    write(tmp_path, [point(0)])
    write(tmp_path, [point(1)])
    assert [p.ordinal for p in listed(tmp_path)] == [0, 1]


def test_directory_is_free_after_kill_9(tmp_path: Path) -> None:
    with start(OPENER, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        holder.kill()
    assert listed(tmp_path) == ()


@pytest.mark.parametrize("acknowledged_before_kill", [1, 30])
def test_kill_9_keeps_every_acknowledged_point(tmp_path: Path, acknowledged_before_kill: int) -> None:
    acknowledged: list[int] = []
    with start(WRITER, tmp_path) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged.append(int(line))
            if len(acknowledged) == acknowledged_before_kill:
                os.kill(writer.pid, signal.SIGKILL)
    found = listed(tmp_path)
    assert {p.ordinal for p in found} >= set(acknowledged)
    assert {p.text for p in found} == {"x" * 500}


def test_index_is_written_on_after_kill_9(tmp_path: Path, point: MakePoint) -> None:
    with start(WRITER, tmp_path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        writer.kill()
    before = len(listed(tmp_path))
    write(tmp_path, [point(1_000_000)])
    assert len(listed(tmp_path)) == before + 1


def test_collection_half_made_by_a_killed_process_is_made_anew(tmp_path: Path, point: MakePoint) -> None:
    half_made = tmp_path / ".new-docs" / "segments"
    half_made.mkdir(parents=True)
    write(tmp_path, [point(0)])
    assert [p.ordinal for p in listed(tmp_path)] == [0]


def test_reopened_index_searches_without_open(tmp_path: Path, point: MakePoint, unit: Callable[[int], bytes]) -> None:
    write(tmp_path, [point(n) for n in range(5)])

    async def scenario() -> str:
        index = EdgeIndex(tmp_path)
        (hit,) = await index.search("docs", unit(3), tenant="acme", limit=1)
        await index.close()
        return hit.text

    assert asyncio.run(scenario()) == "chunk 3"


def test_points_left_after_mass_deletion_survive_reopening(tmp_path: Path, point: MakePoint) -> None:
    """Reopening takes back the space of deleted points, which moves those that are left."""

    async def scenario() -> None:
        index = EdgeIndex(tmp_path)
        await index.open("docs", DIMENSIONS)
        await index.upsert("docs", [point(n) for n in range(3_000)])
        keep = frozenset(point(n).id for n in range(0, 3_000, 3))
        await index.delete_document("docs", tenant="acme", document_id="report", keep=keep)
        await index.close()

    asyncio.run(scenario())
    assert [p.ordinal for p in listed(tmp_path)] == list(range(0, 3_000, 3))


def test_writes_waiting_at_close_are_finished(tmp_path: Path, point: MakePoint) -> None:
    async def scenario() -> None:
        index = EdgeIndex(tmp_path)
        await index.open("docs", DIMENSIONS)
        writes = [asyncio.ensure_future(index.upsert("docs", [point(n)])) for n in range(20)]
        await asyncio.sleep(0)
        await asyncio.gather(index.close(), *writes)

    asyncio.run(scenario())
    assert len(listed(tmp_path)) == 20


def test_closed_index_refuses_reads_and_writes(tmp_path: Path, point: MakePoint) -> None:
    async def scenario() -> None:
        index = EdgeIndex(tmp_path)
        await index.open("docs", DIMENSIONS)
        await index.close()
        await index.close()
        with pytest.raises(Fatal, match="closed"):
            await index.upsert("docs", [point(0)])
        with pytest.raises(Fatal, match="closed"):
            await index.count("docs")

    asyncio.run(scenario())


def test_damaged_collection_is_fatal_and_named(tmp_path: Path, point: MakePoint) -> None:
    write(tmp_path, [point(0)])
    (tmp_path / "docs" / "edge_config.json").write_text("{")

    async def scenario() -> None:
        index = EdgeIndex(tmp_path)
        try:
            await index.count("docs")
        finally:
            await index.close()

    with pytest.raises(Fatal, match="docs cannot be loaded"):
        asyncio.run(scenario())


def test_directory_that_cannot_be_made_is_fatal_and_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match="file/vectors"):
        EdgeIndex(tmp_path / "file" / "vectors")


def test_one_index_serves_several_event_loops(tmp_path: Path, point: MakePoint) -> None:
    index = EdgeIndex(tmp_path)
    asyncio.run(index.open("docs", DIMENSIONS))
    asyncio.run(index.upsert("docs", [point(0)]))
    assert asyncio.run(index.count("docs")) == 1
    asyncio.run(index.close())


def test_an_alias_is_there_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        index = EdgeIndex(tmp_path)
        await index.open("docs--1", DIMENSIONS)
        await index.serve("docs", "docs--1")
        await index.close()
        index = EdgeIndex(tmp_path)
        assert await index.serving("docs") == "docs--1"
        assert await index.serving("../docs") is None
        await index.close()

    asyncio.run(run())
