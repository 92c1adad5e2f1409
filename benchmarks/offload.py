"""Thousands of slow calls from one worker: how near the ideal, and for how much CPU.

The whole answer flow with recovery and the SQLite ledger on; topics are in memory, and the model sleeps instead of
answering over a network, so that what is measured is offload, ledger, flow and snapshots. The ideal is a machine that
costs nothing: each call begins the moment that one of `capacity` slots is free.
"""

import asyncio
import heapq
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import click
from bytewax.testing import cluster_main

from benchmarks.report import Aim, emit
from cli.memory import settle_memory
from connectors.event_loop import EventLoop
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.stop import Stop
from connectors.ledger.patient import PatientLedger
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from connectors.llm.port import LLM, Completion, Delta, Prompt
from flows import answer
from operators.infer import INFER
from operators.runtime import Runtime
from schemas.requests import RequestSubmitted
from tests.memory_topics import MemoryTopics, record

RATIO_AIM = 0.97
CPU_AIM_MS = 1.5


class _Sleeper(LLM):
    """Takes its time and says its name."""

    def __init__(self, latency_s: Callable[[str], float]) -> None:
        self._latency_s = latency_s
        self.began_at: list[float] = []
        self.ended_at: list[float] = []

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        self.began_at.append(time.monotonic())
        await asyncio.sleep(self._latency_s(prompt.job_id))
        self.ended_at.append(time.monotonic())
        yield Completion(prompt.job_id, "sleeper", 10, 10, (), "stop")

    async def close(self) -> None:
        return None


def ideal_s(latencies_s: Sequence[float], capacity: int) -> float:
    """How long the calls take if each begins, in order, the moment that a slot is free."""
    free_at = [0.0] * min(capacity, len(latencies_s))
    for latency_s in latencies_s:
        heapq.heapreplace(free_at, free_at[0] + latency_s)
    return max(free_at)


def _measure(latencies_s: Sequence[float], capacity: int, directory: Path) -> tuple[float, float]:
    """Ratio of the ideal time to the measured one, and CPU milliseconds per call, everything in this process counted.

    The time is that from the first call's beginning to the last one's end, with all that happens in between.
    """
    count = len(latencies_s)
    requests = (RequestSubmitted(job_id=f"{n}", kind="generate", prompt=f"Question {n}?") for n in range(count))
    topics = MemoryTopics([record(request, offset=n) for n, request in enumerate(requests)], batch_size=64)
    sleeper = _Sleeper(lambda job_id: latencies_s[int(job_id)])
    unused: Any = SimpleNamespace()
    with RecoveryDirectory(directory / "recovery") as recovery, EventLoop() as loop:
        runtime = Runtime(topics, loop, Stop())
        ledger = SqlLedger(SqliteStore(directory / "ledger.sqlite"), recovery.identity)
        patient = PatientLedger(ledger, runtime.circuits.of("ledger"))
        policy = replace(INFER, capacity=capacity, backlog=capacity)
        flow = answer.build(runtime, unused, unused, sleeper, patient, answer.AnswerPolicy(inference=policy))
        settle_memory()  # as `headrace run` does
        cpu_began = time.process_time()
        cluster_main(flow, [], 0, epoch_interval=timedelta(seconds=1), recovery_config=recovery.config())
        cpu_s = time.process_time() - cpu_began
        loop.run(ledger.close(), timeout_s=30)
    results = {payload["job_id"] for payload in topics.on("results.completed")}
    if len(results) != count or len(sleeper.ended_at) != count:
        raise RuntimeError(f"{count} calls wanted, {len(sleeper.ended_at)} made, {len(results)} results")
    took_s = max(sleeper.ended_at) - min(sleeper.began_at)
    return ideal_s(latencies_s, capacity) / took_s, cpu_s / count * 1000


@click.command()
@click.option("--calls", default=5000, show_default=True, type=click.IntRange(1))
@click.option("--capacity", default=1000, show_default=True, type=click.IntRange(1), help="Calls in flight.")
@click.option(
    "--mixed-s", nargs=2, type=float, default=(2.0, 30.0), show_default=True, help="Mixed latencies: from, to."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def offload(calls: int, capacity: int, mixed_s: tuple[float, float], *, as_json: bool) -> None:
    """Make CALLS calls of 2 s, and as many of mixed latency, CAPACITY at a time, on one worker with the ledger on."""
    draw = Random(0)  # noqa: S311  # latencies, not secrets
    figures: dict[str, float] = {"calls": calls, "capacity": capacity}
    for name, latencies_s in (("", [2.0] * calls), ("_mixed", [draw.uniform(*mixed_s) for _ in range(calls)])):
        with tempfile.TemporaryDirectory(prefix="headrace-offload-") as directory:
            ratio, cpu_ms = _measure(latencies_s, capacity, Path(directory))
        figures[f"ratio_to_ideal{name}"] = round(ratio, 4)
        figures[f"cpu_ms_per_call{name}"] = round(cpu_ms, 3)
    aims = [
        Aim(name, f"{RATIO_AIM} at least", met=figures[name] >= RATIO_AIM)
        for name in ("ratio_to_ideal", "ratio_to_ideal_mixed")
    ]
    aims.append(Aim("cpu_ms_per_call", f"below {CPU_AIM_MS}", met=figures["cpu_ms_per_call"] < CPU_AIM_MS))
    emit("offload", figures, aims, as_json=as_json)
