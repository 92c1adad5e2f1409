"""All hostile files through one worker, one after the other, and a benign document after each."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.parsers.pool import ProcessParser
from schemas.errors import Poison, TookTooLong
from tests.connectors.parsers.building import docx
from tests.connectors.parsers.hostile import Hostile, corpus
from tests.connectors.parsers.test_pool import worker_pids

MEMORY_BYTES = 512 << 20
TIMEOUT_S = 6.0  # the one file that takes it is slow by far
BENIGN = docx(["All is well."])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as loop:
        yield loop


@pytest.fixture(scope="module")
def parser(runner: asyncio.Runner) -> Iterator[ProcessParser]:
    """The one pool of one worker."""

    async def started() -> ProcessParser:
        return ProcessParser(workers=1, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S)

    parser = runner.run(started())
    yield parser
    runner.run(parser.close())


def peak_bytes(pid: int) -> int:
    """The most address space that a process has had."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmPeak:")) << 10


async def end_of(parser: ProcessParser, hostile: Hostile) -> str:
    """How a file ends; any other exception than the two is the test's failure."""
    data = hostile.build()
    began = time.monotonic()
    try:
        parsed = await parser.parse(data, name=hostile.name)
    except Poison as error:
        message = str(error)
    except TookTooLong:
        return "slow"
    else:
        assert parsed.text.strip()
        assert "PATH=" not in parsed.text
        return "text"
    finally:
        assert time.monotonic() - began < TIMEOUT_S + 10
    assert message.startswith(f"{hostile.name}: ")
    assert "its parser failed with" not in message  # an exception that nobody thought of
    return "slow" if "its parser process" in message else "poison"


@pytest.mark.parametrize("hostile", corpus(), ids=lambda hostile: hostile.name)
def test_hostile_file_ends_as_it_should_and_the_next_document_is_read(
    hostile: Hostile, runner: asyncio.Runner, parser: ProcessParser
) -> None:
    async def scenario() -> None:
        assert await end_of(parser, hostile) in hostile.ends
        assert (await parser.parse(BENIGN, name="benign.docx")).text == "All is well."
        (pid,) = worker_pids()
        assert peak_bytes(pid) <= MEMORY_BYTES

    runner.run(scenario())


def test_corpus_has_forty_files_at_least() -> None:
    assert len({hostile.name for hostile in corpus()}) == len(corpus()) >= 40
