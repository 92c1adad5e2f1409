"""Admission: events per second and core through decode, guard, dedup and budget, beside a bare flow in the same run."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Literal

import bytewax.operators as op
import click
from bytewax.dataflow import Dataflow
from bytewax.operators import KeyedStream, StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSource, cluster_main

from benchmarks.report import Aim, emit
from cli.memory import settle_memory
from connectors.event_loop import EventLoop
from connectors.kafka.record import Record
from connectors.kafka.stop import Stop
from operators.account import Cost
from operators.budget import BudgetPolicy, Charge, budget
from operators.decode import decode
from operators.dedup import DedupPolicy, dedup
from operators.envelope import Envelope
from operators.guard import GuardPolicy, guard
from operators.infer import submission
from operators.runtime import Runtime
from schemas.budgets import Budget, BudgetChanged, WindowLimit
from schemas.requests import RequestSubmitted
from schemas.reviews import ReviewDecided
from schemas.usage import TokensUsed
from tests.memory_topics import MemoryTopics

TENANTS = 1000
RECOVERY_PARTITIONS = 16
BATCH = 64  # as the Kafka source hands on
RATE_AIM = 25_000
RATIO_AIM = 0.5
_AT = datetime(2026, 1, 1, tzinfo=UTC)

Flow = Literal["admission", "bare"]


@dataclass(frozen=True)
class _Part:
    """What one process measured."""

    events_s: float
    cpu_us: float  # per event, all threads


class _Null(StatelessSinkPartition[Any]):
    def __init__(self, counted: list[int]) -> None:
        self._counted = counted

    def write_batch(self, items: list[Any]) -> None:
        self._counted[0] += len(items)


class _Count(DynamicSink[Any]):
    """Counts, and keeps nothing."""

    def __init__(self, counted: list[int]) -> None:
        self._counted = counted

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Null:
        del step_id, worker_index, worker_count
        return _Null(self._counted)


def records(count: int) -> list[Record]:
    """Requests as producers send them, of a thousand tenants in turn, made before the clock starts."""
    made = []
    for number in range(count):
        payload = {
            "job_id": f"job-{number:09d}",
            "tenant": f"tenant-{number % TENANTS:04d}",
            "kind": "generate",
            "prompt": f"Summarise what changed in section {number} of the maintenance manual.",
            "submitted_at": "2026-01-01T00:00:00Z",
        }
        value = json.dumps(payload).encode()
        made.append(Record("requests.submitted", number % 8, number, None, value, (), _AT))
    return made


def _cost(request: RequestSubmitted) -> Cost:
    return Cost(len((request.prompt or "").encode()) + request.max_tokens)


def _admission(envelope: Envelope[RequestSubmitted]) -> str:
    return f"{envelope.body.job_id}/0"


def admission_flow(entries: list[Record], counted: list[int], runtime: Runtime) -> Dataflow:
    """Decode, dedup, guard and budget, with a budget of two windows for every tenant."""
    flow = Dataflow("bench")
    read = op.input("read", flow, TestingSource(entries, BATCH))
    decoded = decode("decode", read, RequestSubmitted)
    known = dedup("dedup", decoded.oks, submission, DedupPolicy())
    used: KeyedStream[Envelope[TokensUsed]] = _none("used", flow)
    decided: KeyedStream[Envelope[ReviewDecided]] = _none("decided", flow)
    changed: KeyedStream[Envelope[BudgetChanged]] = _none("changed", flow)
    guarded = guard("guard", known.fresh, used, decided, GuardPolicy(), runtime)
    windows = (WindowLimit(seconds=60, tokens=10**9), WindowLimit(kind="sliding", seconds=86_400, tokens=10**11))
    policy = BudgetPolicy(Budget(windows=windows))
    charge = Charge(RequestSubmitted, _cost, _admission)
    afforded = budget("budget", guarded.oks, used, changed, charge, policy, runtime)
    rest = op.merge("rest", decoded.errs, guarded.errs, afforded.errs)
    op.output("admitted", afforded.oks, _Count(counted))
    op.output("repeats", known.repeats, _Count(counted))
    op.output("buried", rest, _Count([0]))
    return flow


def _none(name: str, flow: Dataflow) -> KeyedStream[Any]:
    return op.input(name, flow, TestingSource([]))


class _Pass(StatefulBatchLogic[Record, Record, int]):
    """Keeps a number per key, as the least that a stateful step can do."""

    def __init__(self, resume: int | None) -> None:
        self._seen = resume or 0

    def on_batch(self, values: list[Record]) -> tuple[list[Record], bool]:
        self._seen += len(values)
        return values, False

    def snapshot(self) -> int:
        return self._seen


def bare_flow(entries: list[Record], counted: list[int]) -> Dataflow:
    """A map and a keyed pass-through over as many tenants: what Bytewax itself takes."""
    flow = Dataflow("bench")
    read = op.input("read", flow, TestingSource(entries, BATCH))
    keyed = op.map("map", read, lambda record: (f"tenant-{record.offset % TENANTS:04d}", record))
    op.output("out", op.stateful_batch("pass", keyed, _Pass), _Count(counted))
    return flow


def _run(which: Flow, count: int) -> _Part:
    """One process's part: one flow with recovery on, as long as its events last."""
    entries, counted = records(count), [0]
    with tempfile.TemporaryDirectory(prefix="headrace-admission-") as name, EventLoop() as loop:
        init_db_dir(Path(name), RECOVERY_PARTITIONS)
        if which == "bare":
            flow = bare_flow(entries, counted)
        else:
            flow = admission_flow(entries, counted, Runtime(MemoryTopics([]), loop, Stop()))
        settle_memory()
        began, cpu_began = time.monotonic(), time.process_time()
        config = RecoveryConfig(name)
        cluster_main(flow, [], 0, epoch_interval=timedelta(seconds=1), recovery_config=config)
        seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    if counted != [count]:
        raise RuntimeError(f"{count} events went in, and {counted[0]} came out")
    return _Part(count / seconds, cpu_s / count * 1e6)


def _measured(which: Flow, count: int, rounds: int) -> Iterator[_Part]:
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.admission", which, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # ourselves
        yield _Part(**json.loads(done.stdout))


@click.command()
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of each flow, alternately.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def admission(events: int, rounds: int, *, as_json: bool) -> None:
    """Send EVENTS requests of 1,000 tenants through admission, and through a bare flow, each on one worker."""
    ours, bare = _measured("admission", events, rounds), _measured("bare", events, rounds)
    pairs = list(zip(ours, bare, strict=True))  # alternately
    rate, bare_rate = median(one.events_s for one, _ in pairs), median(other.events_s for _, other in pairs)
    ratio = median(one.events_s / other.events_s for one, other in pairs)
    figures = {
        "events": events,
        "tenants": TENANTS,
        "rounds": rounds,
        "events_s_core": round(rate),
        "bare_events_s_core": round(bare_rate),
        "ratio_to_bare": round(ratio, 3),
        "cpu_us": round(median(one.cpu_us for one, _ in pairs), 1),
        "bare_cpu_us": round(median(other.cpu_us for _, other in pairs), 1),
    }
    aims = [
        Aim("events_s_core", f"{RATE_AIM:,} at least", met=rate >= RATE_AIM),
        Aim("ratio_to_bare", f"{RATIO_AIM} at least", met=ratio >= RATIO_AIM),
    ]
    emit("admission", figures, aims, as_json=as_json)


if __name__ == "__main__":
    which: Flow = "bare" if sys.argv[1] == "bare" else "admission"
    print(json.dumps(asdict(_run(which, int(sys.argv[2])))))  # noqa: T201  # read by the process above
