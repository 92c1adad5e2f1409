import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.parsers.limits import Limits
from connectors.parsers.pool import ProcessParser
from connectors.parsers.port import Attachment, ParsedDocument
from schemas.errors import HeadraceError, Poison, Retryable
from tests.connectors.parsers.building import File, mail, multipart, text_part

DEADLINE_S = 30.0
LONG_WORK = b"<html><body>" + b"<p>word</p>" * 3_000_000  # many seconds of parsing
CPU_TICKS = 14  # field of /proc/<pid>/stat


def worker_pids(owner: int | None = None) -> set[int]:
    """Live parser workers among the children of a process."""
    found = set()
    for children in Path(f"/proc/{owner or os.getpid()}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if b"connectors.parsers.worker" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                found.add(pid)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[CPU_TICKS - 1])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def only_worker(parser: ProcessParser) -> int:
    """The pid of a parser's one worker, started and idle."""
    await parser.parse(b"first", name="first.txt")
    (pid,) = worker_pids()
    return pid


async def start_long_work(parser: ProcessParser, pid: int) -> asyncio.Task[ParsedDocument]:
    """A document that the worker is in the middle of."""
    before = cpu_ticks(pid)
    task = asyncio.create_task(parser.parse(LONG_WORK, name="long.html"))
    await until(lambda: cpu_ticks(pid) > before + 20)
    return task


async def assert_next_document_goes_through(parser: ProcessParser) -> None:
    assert (await parser.parse(b"next", name="next.txt")).text == "next"


def test_document_comes_back_with_its_title_and_sections() -> None:
    async def scenario() -> ParsedDocument:
        async with ProcessParser(workers=1) as parser:
            return await parser.parse("# Größe\n\nwords\n\n## Länge\n\nmore".encode(), name="a.md")

    parsed = asyncio.run(scenario())
    assert parsed.text == "# Größe\n\nwords\n\n## Länge\n\nmore"
    assert (parsed.media_type, parsed.title) == ("text/markdown", "Größe")
    assert [(section.start, section.label) for section in parsed.sections] == [(0, "Größe"), (16, "Länge")]


def test_attachments_come_back_byte_for_byte() -> None:
    files = [File("all.bin", "a/b", bytes(range(256)) * 4096), File("none.bin", "a/b", b""), File("x", "a/c", b"{}")]
    data = mail(subject="x", body=multipart([text_part("see"), *(file.part() for file in files)]))

    async def scenario() -> ParsedDocument:
        async with ProcessParser(workers=1) as parser:
            parsed = await parser.parse(data, name="a.eml")
            await assert_next_document_goes_through(parser)
            return parsed

    attachments = asyncio.run(scenario()).attachments
    assert attachments == tuple(Attachment(file.name, file.media_type, file.data) for file in files)


def test_no_process_is_started_before_the_first_document() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            assert worker_pids() == set()
            await assert_next_document_goes_through(parser)
            assert len(worker_pids()) == 1

    asyncio.run(scenario())


def test_no_more_processes_than_workers_however_many_documents() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=2) as parser:
            texts = [f"document {number}" for number in range(100)]
            parsed = await asyncio.gather(*(parser.parse(text.encode(), name="a.txt") for text in texts))
            assert [document.text for document in parsed] == texts
            assert len(worker_pids()) <= 2

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", "größe \udcff.txt", "x" * 100_000])
def test_any_name_is_taken(name: str) -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            assert (await parser.parse(b"words", name=name)).text == "words"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n", "white space"),
        (b"SQLite format 3\x00\x00\x00", "SQLite database"),
        (bytes(range(256)) * 10, "binary file"),
        (b"%PDF-1.4 and nothing more", "ends in the middle"),
        (b"<html><body>" + b"<div>" * 10_000 + b"x", "levels deep"),
        (b"word " * 2_500_000, "12500000 characters of text; the limit is 10000000"),
    ],
    ids=["empty", "blank", "database", "binary", "cut-pdf", "deep-html", "long"],
)
def test_bad_document_is_poison_and_its_worker_goes_on(data: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            with pytest.raises(Poison, match=f"^bad: .*{reason}"):
                await parser.parse(data, name="bad")
            await assert_next_document_goes_through(parser)
            assert worker_pids() == {pid}

    asyncio.run(scenario())


def test_limits_reach_the_worker() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1, limits=Limits(max_characters=3)) as parser:
            with pytest.raises(Poison, match="the limit is 3"):
                await parser.parse(b"words", name="a.txt")

    asyncio.run(scenario())


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_worker_that_dies_over_a_document_makes_it_poison_and_is_replaced(blow: signal.Signals) -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            task = await start_long_work(parser, pid)
            os.kill(pid, blow)
            with pytest.raises(Poison, match=f"long.html: .*{blow.name}"):
                await task
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_worker_that_dies_idle_is_not_blamed_on_the_next_document() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Retryable, match="before it took the document"):
                await parser.parse(b"innocent", name="innocent.txt")
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_cancelled_call_kills_its_hung_worker_and_the_next_document_goes_through() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            os.kill(pid, signal.SIGSTOP)
            task = asyncio.create_task(parser.parse(b"hung", name="hung.txt"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: is_gone(pid))
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_cancelled_call_kills_its_busy_worker() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            task = await start_long_work(parser, pid)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: is_gone(pid))
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_cancelling_a_call_that_waits_for_a_worker_disturbs_nobody() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            working = asyncio.create_task(parser.parse(b"<p>word</p>" * 100_000, name="a.html"))
            waiting = asyncio.create_task(parser.parse(b"waiting", name="b.txt"))
            await asyncio.sleep(0)
            waiting.cancel()
            assert (await working).text.startswith("word")
            assert worker_pids() == {pid}

    asyncio.run(scenario())


def test_hung_worker_ends_at_the_time_limit_and_the_document_may_be_retried() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1, timeout_s=3.0) as parser:
            pid = await only_worker(parser)
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(Retryable, match=r"hung\.txt: .*longer than 3 s"):
                await parser.parse(b"hung", name="hung.txt")
            await until(lambda: is_gone(pid))
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_hung_worker_does_not_hold_up_the_others() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=2) as parser:
            pid = await only_worker(parser)
            os.kill(pid, signal.SIGSTOP)
            hung = asyncio.create_task(parser.parse(b"hung", name="hung.txt"))
            await asyncio.sleep(0)
            for _ in range(10):
                await assert_next_document_goes_through(parser)
            hung.cancel()
            await asyncio.wait([hung])

    asyncio.run(scenario())


@pytest.mark.parametrize("data", [LONG_WORK, b"x" * 400_000_000], ids=["html", "text"])
def test_document_that_eats_all_memory_is_poison_that_says_so(data: bytes) -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1, memory_bytes=256 << 20) as parser:
            with pytest.raises(Poison, match="ran out of memory"):
                await parser.parse(data, name="big")
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_worker_is_replaced_after_its_share_of_documents() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1, recycle_after=2) as parser:
            first = await only_worker(parser)
            await assert_next_document_goes_through(parser)
            await assert_next_document_goes_through(parser)
            assert first not in worker_pids()

    asyncio.run(scenario())


def test_ctrl_c_does_not_reach_the_work() -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            os.kill(pid, signal.SIGINT)
            await assert_next_document_goes_through(parser)
            assert worker_pids() == {pid}
            assert os.getpgid(pid) != os.getpgid(0)

    asyncio.run(scenario())


def test_worker_sees_no_secret_of_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LLM_API_KEY", "hunter2")

    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()

    asyncio.run(scenario())


def test_module_in_the_current_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)

    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            await assert_next_document_goes_through(parser)

    asyncio.run(scenario())


def test_what_a_library_prints_does_not_disturb_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = "import sys\nsys.addaudithook(lambda event, args: 'html' in str(args) and print('noise', flush=True))\n"
    (tmp_path / "sitecustomize.py").write_text(noisy)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(Path(__file__).parents[3]))))

    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            assert (await parser.parse(b"<p>words</p>", name="a.html")).text == "words"

    asyncio.run(scenario())


def test_close_leaves_no_process_and_no_zombie() -> None:
    async def scenario() -> set[int]:
        async with ProcessParser(workers=2) as parser:
            await asyncio.gather(*(parser.parse(b"words", name="a.txt") for _ in range(10)))
            return worker_pids()

    pids = asyncio.run(scenario())
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_close_ends_a_document_in_the_works_as_retryable() -> None:
    async def scenario() -> None:
        parser = ProcessParser(workers=1)
        pid = await only_worker(parser)
        task = await start_long_work(parser, pid)
        await parser.close()
        with pytest.raises(Retryable, match="closed"):
            await task
        await parser.close()
        assert not Path(f"/proc/{pid}").exists()

    asyncio.run(scenario())


def test_closed_parser_takes_nothing() -> None:
    async def scenario() -> None:
        parser = ProcessParser(workers=1)
        await parser.close()
        with pytest.raises(Retryable, match="closed"):
            await parser.parse(b"words", name="a.txt")

    asyncio.run(scenario())


def test_machine_without_room_for_a_process_is_retryable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            with pytest.raises(Retryable, match="no parser process could be started"):
                await parser.parse(b"words", name="a.txt")

    asyncio.run(scenario())


def test_loop_in_another_thread_works_as_well() -> None:
    outcome: list[str | HeadraceError] = []

    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            pid = await only_worker(parser)
            task = await start_long_work(parser, pid)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Poison):
                await task
            outcome.append((await parser.parse(b"words", name="a.txt")).text)

    thread = threading.Thread(target=lambda: asyncio.run(scenario()))
    thread.start()
    thread.join(2 * DEADLINE_S)
    assert outcome == ["words"]


OWNER = """
import asyncio, sys
from connectors.parsers.pool import ProcessParser

async def main():
    parser = ProcessParser(workers=2)
    await parser.parse(b"words", name="a.txt")
    print("ready", flush=True)
    await asyncio.gather(*(parser.parse(b"<p>word</p>" * 3_000_000, name="a.html") for _ in range(2)))

asyncio.run(main())
"""


def test_workers_die_with_their_owner_even_while_they_hang() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + DEADLINE_S
            while len(workers := worker_pids(owner.pid)) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(workers) == 2
            os.kill(min(workers), signal.SIGSTOP)
        finally:
            owner.kill()
    deadline = time.monotonic() + DEADLINE_S
    while not all(is_gone(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(is_gone(pid) for pid in workers)
