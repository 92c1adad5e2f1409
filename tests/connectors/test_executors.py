"""Calls in threads and processes: bounded, killable where they can be, and one that dies costs itself alone."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from connectors.executors import ProcessExecutor, ThreadExecutor
from schemas.errors import Fatal, Poison, Retryable

ROOT = Path(__file__).parents[2]


def with_processes(
    test: Callable[[ProcessExecutor], Awaitable[None]], workers: int = 2, *, recycle_after: int = 200
) -> None:
    async def run() -> None:
        executor = ProcessExecutor(workers, recycle_after=recycle_after)
        try:
            await asyncio.wait_for(test(executor), 60)
        finally:
            await executor.close()

    asyncio.run(run())


def double(number: int) -> int:
    return number * 2


def own_pid() -> int:
    return os.getpid()


def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGSEGV)


def spin(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        pass


def fail(kind: type[Exception]) -> None:
    raise kind("told by the function")


def printing(text: str) -> str:
    print(text)  # noqa: T201  # what a library might do
    sys.stdout.flush()
    return sys.stdin.read()


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def fail_badly() -> None:
    raise Unpicklable(1, 2)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


def test_results_come_back_from_as_many_processes_as_there_are_workers() -> None:
    async def test(executor: ProcessExecutor) -> None:
        assert await asyncio.gather(*(executor.run(double, n) for n in range(20))) == [n * 2 for n in range(20)]
        pids = await asyncio.gather(*(executor.run(own_pid) for _ in range(20)))
        assert len(set(pids)) <= 2
        assert os.getpid() not in pids

    with_processes(test)


@pytest.mark.parametrize(("how", "told"), [("exit", "exit code 7"), ("segfault", "SIGSEGV")])
def test_a_process_that_dies_costs_its_item_alone(how: str, told: str) -> None:
    async def test(executor: ProcessExecutor) -> None:
        good = [executor.run(double, n) for n in range(5)]
        bad, *others = await asyncio.gather(executor.run(die, how), *good, return_exceptions=True)
        assert isinstance(bad, Poison)
        assert told in str(bad)
        assert others == [0, 2, 4, 6, 8]

    with_processes(test)


def test_a_call_that_is_cancelled_is_killed_even_in_a_busy_loop(tmp_path: Path) -> None:
    async def test(executor: ProcessExecutor) -> None:
        started = tmp_path / "pid"
        call = asyncio.create_task(executor.run(spin, str(started)))
        await until(lambda: started.exists() and started.read_text() != "")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: gone(int(started.read_text())))
        assert await executor.run(double, 4) == 8

    with_processes(test, workers=1)


@pytest.mark.parametrize("kind", [Poison, Retryable, Fatal, ValueError])
def test_exceptions_keep_their_class(kind: type[Exception]) -> None:
    async def test(executor: ProcessExecutor) -> None:
        with pytest.raises(kind, match="told by the function"):
            await executor.run(fail, kind)

    with_processes(test)


def test_an_exception_that_cannot_travel_and_a_function_that_cannot_are_told() -> None:
    async def test(executor: ProcessExecutor) -> None:
        with pytest.raises(Poison, match="Unpicklable"):
            await executor.run(fail_badly)
        with pytest.raises(TypeError, match="another process"):
            await executor.run(lambda: 1)
        assert await executor.run(double, 1) == 2

    with_processes(test, workers=1)


def test_what_a_function_prints_or_reads_does_not_disturb_the_pipes() -> None:
    async def test(executor: ProcessExecutor) -> None:
        assert await executor.run(printing, "x" * 100_000) == ""

    with_processes(test)


def test_processes_are_replaced_after_their_number_of_calls() -> None:
    async def test(executor: ProcessExecutor) -> None:
        assert len({await executor.run(own_pid) for _ in range(6)}) == 3

    with_processes(test, workers=1, recycle_after=2)


def test_processes_die_with_their_owner_kill_9_included(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    code = (
        "import asyncio\n"
        "from connectors.executors import ProcessExecutor\n"
        "from tests.connectors.test_executors import spin\n"
        f"asyncio.run(ProcessExecutor(1).run(spin, {str(started)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as owner:
        try:
            deadline = time.monotonic() + 30
            while not (started.exists() and started.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            owner.kill()
    pid = int(started.read_text())
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_threads_are_bounded_and_do_not_block_the_loop() -> None:
    async def test() -> None:
        executor = ThreadExecutor(2)
        release = threading.Event()
        calls = [asyncio.create_task(executor.run(release.wait, 30)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(call.done() for call in calls)
        release.set()
        assert await asyncio.gather(*calls) == [True] * 3
        with pytest.raises(Poison):
            await executor.run(fail, Poison)
        await executor.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_thread_that_outlives_its_timeout_keeps_its_place_and_the_others_go_on() -> None:
    async def test() -> None:
        executor = ThreadExecutor(2)
        release = threading.Event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await executor.run(release.wait, 30)
        assert await executor.run(double, 2) == 4
        release.set()
        await executor.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def measured(name: str, executor: str) -> float:
    return REGISTRY.get_sample_value(f"headrace_executor_{name}", {"executor": executor}) or 0.0


def test_metrics_tell_the_workers_until_they_are_closed_and_how_long_they_have_worked() -> None:
    async def run() -> None:
        threads, processes = ThreadExecutor(3, name="waiters"), ProcessExecutor(2, name="counters")
        assert (measured("workers", "waiters"), measured("workers", "counters")) == (3, 2)
        await asyncio.gather(*(threads.run(time.sleep, 0.05) for _ in range(3)))
        with pytest.raises(Fatal):
            await processes.run(fail, Fatal)
        await threads.close()
        await processes.close()

    asyncio.run(run())
    assert measured("busy_seconds_total", "waiters") >= 0.15
    assert measured("busy_seconds_total", "counters") > 0
    assert (measured("workers", "waiters"), measured("workers", "counters")) == (0, 0)
