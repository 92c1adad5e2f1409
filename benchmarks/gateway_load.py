"""The load of `headrace bench gateway`, as a process of its own: each command is one phase and prints its figures."""

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import SplitResult, urlsplit

import click
import uvloop

from benchmarks.http_connection import OK, Connection, message
from benchmarks.report import percentile
from benchmarks.watch import Client, Watch

ACCEPTED = 202
_OPENING = 64  # connections opened at once: more would wait in the kernel's queue
_PATIENCE_S = 60.0  # until the streams are open


@dataclass(frozen=True)
class Posted:
    """What a burst or a run of POSTs came to."""

    asked: int  # the warm-up included
    errors: int
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    completed: int = 0  # answered, as the client sees it
    took_s: float = 0.0


@dataclass(frozen=True)
class Streamed:
    """What the watchers of many streams were told."""

    events: int
    lost: int
    repeated: int
    resumed: int
    refused: int
    unended: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def question(number: int) -> str:
    """About 300 characters, and another one for each number and moment: the same again would be the same job."""
    return (
        f"Question {number} at {time.time()}: what changed in this section of the maintenance manual? "
        + "The gate was lifted. " * 11
    )


async def _submitting(client: Client, connections: int, warm_up_s: float, seconds: float) -> Posted:
    """As many POSTs, one after the other on each connection, as the gateway accepts."""
    began = time.monotonic()
    counted_from, until = began + warm_up_s, began + warm_up_s + seconds
    latencies_s: list[float] = []
    asked = errors = 0

    async def submit(first: int) -> None:
        nonlocal asked, errors
        connection = await Connection.open(client.at)
        number = first
        while (sent := time.monotonic()) < until:
            answer = await connection.ask(client.submission(question(number)))
            if answer.status != ACCEPTED:
                errors += 1
            elif sent >= counted_from:
                latencies_s.append(time.monotonic() - sent)
            number += connections
            asked += 1
        connection.close()

    await asyncio.gather(*(submit(first) for first in range(connections)))
    return _posted(latencies_s, asked, errors, per_s=len(latencies_s) / (time.monotonic() - counted_from))


async def _bursting(client: Client, count: int, timeout_s: float) -> Posted:
    """COUNT users at once: each submits on a connection of its own, and watches until the answer is there.

    The connections are open before, as those of a service that calls another one are; the streams are opened when the
    last POST is answered, so that each of the two is measured by itself.
    """
    connections = await _opened(client.at, count)
    submissions = [client.submission(question(number)) for number in range(count)]
    all_answered = asyncio.Barrier(count)
    began = time.monotonic()
    latencies_s: list[float] = []
    completed = errors = 0

    async def ask(number: int) -> None:
        nonlocal completed, errors
        sent = time.monotonic()
        try:
            answer = await connections[number].ask(submissions[number])
            latencies_s.append(time.monotonic() - sent)
        finally:
            connections[number].close()
            await all_answered.wait()
        if answer.status != ACCEPTED:
            errors += 1
            return
        watch = Watch(client, json.loads(answer.body)["job_id"])
        await watch.follow()
        completed += watch.state == "completed"
        errors += watch.state != "completed"

    failed = await _all([ask(number) for number in range(count)], timeout_s)
    took_s = time.monotonic() - began
    return _posted(latencies_s, count, errors + failed, completed=completed, took_s=took_s)


async def _waiting(at: SplitResult, count: int, timeout_s: float) -> Posted:
    """COUNT users at once, each of whom waits for the answer on the connection that asked, as long as a client does."""
    connections = await _opened(at, count)
    began = time.monotonic()
    latencies_s: list[float] = []
    errors = 0

    async def ask(number: int) -> None:
        nonlocal errors
        connection = connections[number]
        body = json.dumps({"prompt": question(number)}).encode()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await connection.ask(message(at, "POST", "/answer", {}, body))
        except TimeoutError:
            errors += 1
            return
        finally:
            connection.close()
        if answer.status == OK:
            latencies_s.append(time.monotonic() - began)
        else:
            errors += 1

    failed = await _all([ask(number) for number in range(count)], timeout_s + 5.0)
    took_s = time.monotonic() - began
    return _posted(latencies_s, count, errors + failed, completed=len(latencies_s), took_s=took_s)


async def _opened(at: SplitResult, count: int) -> list[Connection]:
    """So many connections, a few at a time."""
    slots = asyncio.Semaphore(_OPENING)

    async def open_one() -> Connection:
        async with slots:
            return await Connection.open(at)

    return list(await asyncio.gather(*(open_one() for _ in range(count))))


async def _all(clients: Sequence[Coroutine[object, object, None]], timeout_s: float) -> int:
    """Run all at once; how many of them failed or were not done in time. Why the first one did, on stderr."""
    tasks = [asyncio.create_task(each) for each in clients]
    done, late = await asyncio.wait(tasks, timeout=timeout_s)
    for each in late:
        each.cancel()
    failures = [failure for each in done if (failure := each.exception()) is not None]
    for failure in failures[:1]:
        click.echo(f"{len(failures)} of {len(tasks)} clients failed, the first with {failure!r}", err=True)
    return len(late) + len(failures)


async def _watching(client: Client, job_ids: Sequence[str], leave_at: int, timeout_s: float) -> Streamed:
    """A watcher for each job, all connected before anything flows; a tenth of them leave once and come back."""
    watches = [
        Watch(client, job_id, leave_at + index % 7 if index % 10 == 0 else -1) for index, job_id in enumerate(job_ids)
    ]
    slots = asyncio.Semaphore(_OPENING)
    tasks: list[asyncio.Task[None]] = []

    async def open_one(watch: Watch) -> None:
        async with slots:
            tasks.append(asyncio.create_task(watch.follow()))
            await watch.opened.wait()

    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(*map(open_one, watches))
    _say({"open": len(watches)})
    _, late = await asyncio.wait(tasks, timeout=timeout_s)
    for each in late:
        each.cancel()
    refusals = [refusal for watch in watches for refusal in watch.refusals]
    for refusal in refusals[:1]:
        click.echo(f"{len(refusals)} streams were refused or cut, the first with {refusal}", err=True)
    latencies_ms = sorted(latency_s * 1000 for watch in watches for latency_s in watch.latencies_s)
    return Streamed(
        events=sum(watch.events for watch in watches),
        lost=sum(watch.lost for watch in watches),
        repeated=sum(watch.repeated for watch in watches),
        resumed=sum(watch.connections - 1 for watch in watches),
        refused=len(refusals),
        unended=len(late),
        p50_ms=percentile(latencies_ms, 50),
        p99_ms=percentile(latencies_ms, 99),
        max_ms=percentile(latencies_ms, 100),
    )


def _posted(
    latencies_s: Sequence[float],
    asked: int,
    errors: int,
    *,
    per_s: float = 0.0,
    completed: int = 0,
    took_s: float = 0.0,
) -> Posted:
    latencies_ms = sorted(latency_s * 1000 for latency_s in latencies_s)
    p50_ms, p99_ms, max_ms = (percentile(latencies_ms, share) for share in (50, 99, 100))
    return Posted(asked, errors, per_s, p50_ms, p99_ms, max_ms, completed, took_s)


def _say(figures: dict[str, object]) -> None:
    click.echo(json.dumps(figures))


@click.group()
def load() -> None:
    """Phases of the load."""


@load.command()
@click.argument("url")
@click.argument("key")
@click.option("--connections", type=int, required=True)
@click.option("--warm-up-s", type=float, required=True)
@click.option("--seconds", type=float, required=True)
def submitting(url: str, key: str, connections: int, warm_up_s: float, seconds: float) -> None:
    """Submit as much as is accepted."""
    _say(asdict(uvloop.run(_submitting(Client(urlsplit(url), key), connections, warm_up_s, seconds))))


@load.command()
@click.argument("url")
@click.argument("key")
@click.option("--count", type=int, required=True)
@click.option("--timeout-s", type=float, required=True)
def bursting(url: str, key: str, count: int, timeout_s: float) -> None:
    """Submit COUNT requests at once and wait for their answers."""
    _say(asdict(uvloop.run(_bursting(Client(urlsplit(url), key), count, timeout_s))))


@load.command()
@click.argument("url")
@click.option("--count", type=int, required=True)
@click.option("--timeout-s", type=float, required=True)
def waiting(url: str, count: int, timeout_s: float) -> None:
    """Ask a synchronous endpoint COUNT questions at once."""
    _say(asdict(uvloop.run(_waiting(urlsplit(url), count, timeout_s))))


@load.command()
@click.argument("url")
@click.argument("key")
@click.option("--count", type=int, required=True)
@click.option("--leave-at", type=int, required=True)
@click.option("--timeout-s", type=float, required=True)
def watching(url: str, key: str, count: int, leave_at: int, timeout_s: float) -> None:
    """Watch the jobs stream-0, stream-1 ..., and say {"open": COUNT} when all are connected."""
    job_ids = [f"stream-{number}" for number in range(count)]
    _say(asdict(uvloop.run(_watching(Client(urlsplit(url), key), job_ids, leave_at, timeout_s))))


if __name__ == "__main__":
    load()
