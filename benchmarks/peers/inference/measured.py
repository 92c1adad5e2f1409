"""Inference: slow, unreliable calls of a model with a fixed number of slots; and what a kill -9 at half-way costs.

Each system gets the same jobs; the server draws each call's latency and fault by job, so that all meet the same ones.
There are two runs of each: one to its end, for throughput and CPU, and one whose worker is killed when half of the
answers are there, and started again at once.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.broker import kafka
from benchmarks.peers.environments import Unavailable, python_of, variables, versions_of
from benchmarks.peers.inference.trial import (
    START_S,
    Jobs,
    KafkaJobs,
    Load,
    ProgramJobs,
    model_server,
    redis,
    repeated,
    seen,
    wait_ended,
)
from benchmarks.peers.measure import Program
from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim
from tests.chaos.oracle import Kill, read_calls

SYSTEMS = ("headrace", "celery", "quixstreams", "asyncio_consumer")
OF_IDEAL_AIM = 0.95

FULL = Load(jobs=2_000, latency_s=(2.0, 30.0), slots=256, patience_s=600.0)
QUICK = Load(jobs=200, latency_s=(0.2, 3.0), slots=64, patience_s=300.0)

PEER_TOPICS = ("questions", "answers", "failures")

_HERE = "benchmarks.peers.inference"
_MB = 1e6


@dataclass(frozen=True)
class Worker:
    """A system, set up: how its worker is started, with which variables, and who submits the jobs."""

    command: list[str]
    variables: dict[str, str]
    jobs: Jobs


def measure(request: Request) -> Findings:
    """Both runs of each system that is asked for."""
    load = QUICK if request.quick else FULL
    figures: dict[str, object] = {"jobs": load.jobs, "slots": load.slots, "ideal_per_s": round(load.ideal_per_s, 2)}
    for system in filter(request.wants, SYSTEMS):
        try:
            figures[f"{system}.versions"] = versions_of(system)
            for killed in (False, True):
                directory = request.directory / f"{system}-{'killed' if killed else 'whole'}"
                directory.mkdir()
                found = _run(system, load, directory, killed=killed)
                request.say(f"{system}: {found}")
                figures |= {f"{system}.{name}": value for name, value in found.items()}
        except Unavailable as error:
            figures[f"{system}.unavailable"] = str(error)
            request.say(f"{system}: unavailable: {error}")
    return Findings(figures, _aims(figures) if request.wants("headrace") else [])


def _aims(figures: dict[str, object]) -> list[Aim]:
    def is_none(*names: str) -> bool:
        return all(figures.get(f"headrace.{name}") == 0 for name in names)

    of_ideal = figures.get("headrace.of_ideal")
    return [
        Aim(
            "headrace.of_ideal",
            f"{OF_IDEAL_AIM} at least",
            met=isinstance(of_ideal, float) and of_ideal >= OF_IDEAL_AIM,
        ),
        Aim("headrace.failed", "0, in both runs", met=is_none("failed", "killed.failed", "killed.lost")),
        Aim(
            "headrace.killed.duplicated_calls_outside_window",
            "0",
            met=is_none("killed.duplicated_calls_outside_window"),
        ),
    ]


def _run(system: str, load: Load, directory: Path, *, killed: bool) -> dict[str, object]:
    server_variables = variables()
    with (
        model_server(load, directory, sys.executable, server_variables) as (url, record),
        _worker(system, load, directory, url) as worker,
        ExitStack() as stack,
    ):

        def start() -> Program:
            program = Program(worker.command, worker.variables, log=directory / "worker.log")
            return stack.enter_context(program)

        program = start()
        worker.jobs.submit()
        _wait_called(record, program)
        idle_cpu_s = program.cpu_s  # imports and models are not the calls'
        until = time.monotonic() + load.patience_s
        kill: Kill | None = None
        if killed:
            wait_ended(worker.jobs, load.jobs // 2, until)
            at = time.time()
            program.kill()
            kill = Kill("half-way", at, time.time())
            program = start()
            until = time.monotonic() + load.patience_s
        wait_ended(worker.jobs, load.jobs, until)
        cpu_s = program.cpu_s - idle_cpu_s
        if not program.running:
            raise Unavailable(f"the worker ended with {program.process.returncode}: {program.said()}")
        answered, failed = worker.jobs.ended()
        again = worker.jobs.again()
        program.terminate()
    calls = read_calls(record)
    if kill is None:
        return {
            "answered": answered,
            "failed": load.jobs - answered,
            **seen(calls, load),
            "cpu_ms_per_call": round(cpu_s / sum(map(len, calls.values())) * 1000, 2),
            "peak_rss_mb": round(program.peak_rss_bytes / _MB),
        }
    every = [call for each in calls.values() for call in each]
    back_s = min((call.began_at for call in every if call.began_at > kill.seen_at), default=float("nan")) - kill.at
    found: dict[str, object] = {
        "failed": failed,
        "lost": load.jobs - answered - failed,
        **again,
        **repeated(calls, kill),
        "back_s": round(back_s, 1),
        "all_s": round(max(call.ended_at or kill.at for call in every) - kill.at, 1),
    }
    return {f"killed.{name}": value for name, value in found.items()}


def _wait_called(record: Path, program: Program) -> None:
    """Until the model server has its first call."""
    until = time.monotonic() + 2 * START_S
    while not (record.exists() and record.stat().st_size):
        if not program.running or time.monotonic() > until:
            raise Unavailable(f"made no call within {2 * START_S:.0f} s: {program.said()}")
        time.sleep(0.05)


@contextmanager
def _worker(system: str, load: Load, directory: Path, url: str) -> Iterator[Worker]:
    if system == "celery":
        with redis(directory) as redis_url:
            given = variables(REDIS_URL=redis_url, LLM_URL=url, SLOTS=str(load.slots))
            python = str(python_of("celery"))
            celery = [python, "-m", "celery", "-A", f"{_HERE}.celery_flow", "worker", "--loglevel", "WARNING"]
            submit = [python, "-m", f"{_HERE}.celery_jobs_flow", str(load.jobs), "job"]
            with ProgramJobs(submit, given, directory / "jobs.log") as submitted:
                yield Worker([*celery, "--pool", "gevent", "--concurrency", str(load.slots)], given, submitted)
        return
    headrace = system == "headrace"
    topics = ("requests.submitted", "results.completed", "requests.submitted.dlq")
    if not headrace:
        topics = PEER_TOPICS
    asked = {job_id: {"job_id": job_id, "prompt": f"Question {job_id}?"} for job_id in load.ids}
    if headrace:
        asked = {job_id: payload | {"kind": "generate"} for job_id, payload in asked.items()}
    with kafka(directory, *PEER_TOPICS) as bootstrap, KafkaJobs(bootstrap, topics, asked) as jobs:
        if headrace:
            given = variables(
                HEADRACE_KAFKA_BOOTSTRAP=bootstrap,
                HEADRACE_DATA_DIR=str(directory / "data"),
                HEADRACE_LLM_URL=url,
                HEADRACE_LLM_MODEL="test",
            )
            if load.slots != FULL.slots:  # which is the default
                given["HEADRACE_INFER_CAPACITY"] = str(load.slots)
            yield Worker([sys.executable, "-m", "cli.main", "run", "answer"], given, jobs)
            return
        given = variables(
            KAFKA_BOOTSTRAP=bootstrap,
            KAFKA_GROUP="answers",
            LLM_URL=url,
            SLOTS=str(load.slots),
            STATE_DIR=str(directory / "state"),
        )
        yield Worker([str(python_of(system)), "-m", f"{_HERE}.{system}_flow"], given, jobs)
