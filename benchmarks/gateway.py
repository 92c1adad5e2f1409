"""The gateway under load: how many POSTs, how many streams, and the burst that breaks a synchronous endpoint.

Everything is a process of its own on one machine, over loopback: Apache Kafka with acks=all, `headrace gateway` with
its usual settings, `headrace run answer` with its ledger, a model server with so many slots, and the load.
"""

import hashlib
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import click

from benchmarks.gateway_load import Posted, Streamed
from benchmarks.report import Aim, emit
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord, outgoing
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.deltas import TextDelta
from schemas.errors import HeadraceError
from schemas.jobs import JobState, StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted, Timings, TokenCount
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.headrace_process import RunningFlows
from tests.kafka.apache_kafka import ApacheKafka, missing_tools

ROOT = Path(__file__).parents[1]
PARTITIONS = 16  # as `headrace topics create` makes
TENANT = "acme"
ACCEPT_AIM_MS = 100.0
_START_S = 60.0


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    post_connections: int = 32
    warm_up_s: float = 10.0  # in which the broker's compiler takes half a core
    post_s: float = 10.0
    streams: int = 2000
    deltas: int = 60  # of each stream, at most
    interval_s: float = 0.5  # between two deltas of a stream
    burst: int = 500
    slots: int = 50  # of the model server
    latency_s: tuple[float, float] = (2.0, 30.0)  # of the model
    client_timeout_s: float = 30.0  # of those who wait for a synchronous endpoint

    @property
    def patience_s(self) -> float:
        """Within which a burst must be over: twice what the model needs for it."""
        least, most = self.latency_s
        return 2 * (self.burst * (least + most) / 2 / self.slots + most) + _START_S


QUICK = Plan(8, 0.5, 1.0, 40, 12, 0.1, 24, 4, (0.1, 0.9), 1.0)


class _Gateway:
    """`headrace gateway` while entered, with one API key."""

    def __init__(self, bootstrap: str, directory: Path) -> None:
        self.key = f"hr_{secrets.token_urlsafe(32)}"
        self._log = directory / "gateway.log"
        self._environment = os.environ | {
            "HEADRACE_KAFKA_BOOTSTRAP": bootstrap,
            "HEADRACE_DATA_DIR": str(directory / "gateway"),
            "HEADRACE_GATEWAY_PORT": "0",
            "HEADRACE_API_KEYS": json.dumps({hashlib.sha256(self.key.encode()).hexdigest(): TENANT}),
            "HEADRACE_RATE_PER_S": "1000000",  # one key stands for all users here
            "HEADRACE_RATE_BURST": "1000000",
        }

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "cli.main", "gateway"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # ourselves
                command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        line = _line(self._process)
        self.url = line.removeprefix("gateway: ").strip().rstrip("/")
        try:
            self._wait_until_ready()
        except BaseException:
            _kill(self._process)
            raise
        return self

    def _wait_until_ready(self) -> None:
        """Until /readyz says so: Kafka answers, and the read model is caught up."""
        answer = "nothing"
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz"):  # noqa: S310  # on loopback
                    return
            except urllib.error.HTTPError as error:
                answer = error.read().decode()
            except (OSError, ValueError) as error:
                answer = str(error)
            time.sleep(0.05)
        raise HeadraceError(f"the gateway did not start: {answer}; its log ends with {self._log.read_text()[-1000:]}")

    @property
    def rss_kb(self) -> int:
        """Its memory now."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    @property
    def cpu_s(self) -> float:
        """Seconds of a core that it has used: what a figure costs, on a machine that others use as well."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_START_S)
        finally:
            _kill(self._process)


def _line(process: "subprocess.Popen[str]") -> str:
    out: IO[str] | None = process.stdout
    return "" if out is None else out.readline()


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def _serving(*arguments: str) -> Iterator[str]:
    """A module as a server that prints its URL; the URL."""
    process = subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield json.loads(_line(process))["url"]
    finally:
        _kill(process)


@contextmanager
def _loading(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """The load, as a process beside all others."""
    process = subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-m", "benchmarks.gateway_load", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        _kill(process)


def _posted(*arguments: object) -> Posted:
    with _loading(*arguments) as load:
        return Posted(**json.loads(_line(load)))


def _model_server(plan: Plan) -> tuple[str, ...]:
    latencies = map(str, plan.latency_s)
    return ("tests.llm_server", "--slots", str(plan.slots), "--latency-s", *latencies, "--seed", "0")


def _take_s(model_url: str, latency_s: Sequence[float]) -> None:
    """How long the model takes from now on."""
    body = json.dumps({"latency_s": latency_s}).encode()
    request = urllib.request.Request(f"{model_url.removesuffix('/v1')}/plan", body, method="PUT")  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310  # on loopback


def _calls(model_url: str) -> dict[str, int]:
    """What the model server has been asked."""
    with urllib.request.urlopen(f"{model_url.removesuffix('/v1')}/load") as answer:  # noqa: S310  # on loopback
        counted: dict[str, int] = json.load(answer)
    return counted


def _post(plan: Plan, bootstrap: str, directory: Path) -> dict[str, float]:
    """POSTs, one after the other on each of some connections."""
    with _Gateway(bootstrap, directory) as gateway:
        options = ("--connections", plan.post_connections, "--warm-up-s", plan.warm_up_s, "--seconds", plan.post_s)
        began_s = gateway.cpu_s
        posted = _posted("submitting", gateway.url, gateway.key, *options)
        cpu_s = gateway.cpu_s - began_s
    return {
        "post_s": round(posted.per_s),
        "post_p50_ms": round(posted.p50_ms, 1),
        "post_p99_ms": round(posted.p99_ms, 1),
        "post_cpu_ms": round(cpu_s / posted.asked * 1000, 3),
        "post_errors": posted.errors,
        "post_connections": plan.post_connections,
    }


def _streams(plan: Plan, bootstrap: str, directory: Path) -> dict[str, float]:
    """Watchers of as many jobs, whose answers are written meanwhile, a tenth of them gone for a moment."""
    job_ids = [f"stream-{number}" for number in range(plan.streams)]
    _submit(bootstrap, job_ids)
    leave_at, flowing_s = plan.deltas // 3, plan.deltas * plan.interval_s
    with _Gateway(bootstrap, directory) as gateway:
        before_kb = gateway.rss_kb
        options = ("--count", plan.streams, "--leave-at", leave_at, "--timeout-s", 2 * flowing_s + _START_S)
        with _loading("watching", gateway.url, gateway.key, *options) as load:
            opened = json.loads(_line(load))["open"]
            kb_per_stream = (gateway.rss_kb - before_kb) / opened
            began_s = gateway.cpu_s
            deltas_s = _write_answers(plan, bootstrap, job_ids)
            told = Streamed(**json.loads(_line(load)))
            cpu_s = gateway.cpu_s - began_s
    return {
        "sse_streams": opened,
        "sse_deltas_s": round(deltas_s),
        "sse_events": told.events,
        "sse_p50_ms": round(told.p50_ms, 1),
        "sse_p99_ms": round(told.p99_ms, 1),
        "sse_max_ms": round(told.max_ms, 1),
        "sse_lost": told.lost,
        "sse_repeated": told.repeated,
        "sse_resumed": told.resumed,
        "sse_refused": told.refused,
        "sse_cpu_us": round(cpu_s / told.events * 1e6),
        "sse_kb_per_stream": round(kb_per_stream, 1),
    }


def _submit(bootstrap: str, job_ids: Sequence[str]) -> None:
    """Jobs that run."""
    outbox = ReliableProducer(bootstrap).outbox()
    for job_id in job_ids:
        request = RequestSubmitted(job_id=job_id, tenant=TENANT, kind="generate", prompt="How long is the race?")
        running = StatusChanged(job_id=job_id, tenant=TENANT, state=JobState.RUNNING, step="answer.infer")
        outbox.send(outgoing(request, step="bench"))
        outbox.send(outgoing(running, step="bench"))
    outbox.flush()


def _write_answers(plan: Plan, bootstrap: str, job_ids: Sequence[str]) -> float:
    """Deltas of all jobs in turn, at an even pace, and results; the answers differ in length. Deltas per second."""
    outbox = ReliableProducer(bootstrap).outbox()
    lengths = [plan.deltas - index % (plan.deltas // 6) for index in range(len(job_ids))]
    began = time.monotonic()
    for number in range(plan.deltas):
        for index, job_id in enumerate(job_ids):
            if number >= lengths[index]:
                continue
            due = began + (number + index / len(job_ids)) * plan.interval_s
            if (early_s := due - time.monotonic()) > 0.001:  # noqa: PLR2004  # sleeping is not more exact than this
                time.sleep(early_s)
            last = number == lengths[index] - 1
            delta = TextDelta(
                job_id=job_id, tenant=TENANT, call_id=job_id, number=number, text="The gate was lifted. ", last=last
            )
            outbox.send(outgoing(delta, step="bench"))
            if last:
                _complete(outbox.send, job_id, number + 1)
    outbox.flush()
    return sum(lengths) / (time.monotonic() - began)


def _complete(send: Callable[[OutgoingRecord], None], job_id: str, deltas: int) -> None:
    result = ResultCompleted(
        job_id=job_id,
        tenant=TENANT,
        kind="generate",
        text="The gate was lifted. " * deltas,
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=8, completion_tokens=6 * deltas),
        call_id=job_id,
        model="bench",
        timings=Timings(queued_s=0.0, retrieve_s=0.0, infer_s=0.0),
    )
    completed = StatusChanged(job_id=job_id, tenant=TENANT, state=JobState.COMPLETED, step="answer.infer")
    send(outgoing(result, step="bench"))
    send(outgoing(completed, step="bench"))


def _burst(plan: Plan, bootstrap: str, directory: Path) -> dict[str, float]:
    """The burst through the gateway, from the POST to the end of each job's stream."""
    with _serving(*_model_server(plan)) as model_url:
        variables = {
            "HEADRACE_KAFKA_BOOTSTRAP": bootstrap,
            "HEADRACE_DATA_DIR": str(directory / "answer"),
            "HEADRACE_LLM_URL": model_url,
            "HEADRACE_LLM_MODEL": "test",
            "HEADRACE_INFER_CAPACITY": str(plan.slots),
        }
        with (
            RunningFlows("answer", log=directory / "answer.log", **variables) as flow,
            _Gateway(bootstrap, directory) as gateway,
        ):
            options = ("--timeout-s", plan.patience_s)
            _take_s(model_url, (0.0, 0.0))
            _posted("bursting", gateway.url, gateway.key, "--count", plan.slots, *options)  # all are warm
            _take_s(model_url, plan.latency_s)
            warm = _calls(model_url)
            posted = _posted("bursting", gateway.url, gateway.key, "--count", plan.burst, *options)
            calls = _calls(model_url)
            flow.terminate()
    return {
        "burst_requests": plan.burst,
        "burst_accept_p50_ms": round(posted.p50_ms, 1),
        "burst_accept_p99_ms": round(posted.p99_ms, 1),
        "burst_errors": posted.errors,
        "burst_completed": posted.completed,
        "burst_took_s": round(posted.took_s, 1),
        "burst_calls": calls["calls"] - warm["calls"],
        "burst_calls_at_once": calls["most"],
    }


def _synchronous_burst(plan: Plan) -> dict[str, float]:
    """The same burst through an endpoint that holds each request until the model has answered."""
    with (
        _serving(*_model_server(plan)) as model_url,
        _serving("benchmarks.synchronous", model_url, str(plan.slots)) as url,
    ):
        posted = _posted("waiting", url, "--count", plan.burst, "--timeout-s", plan.client_timeout_s)
        calls = _calls(model_url)
    return {
        "sync_burst_errors": posted.errors,
        "sync_burst_completed": posted.completed,
        "sync_burst_calls": calls["calls"],
        "sync_burst_timeout_s": plan.client_timeout_s,
    }


PHASES = ("burst", "post", "sse")


@click.command()
@click.option("--quick", is_flag=True, help="Few streams and requests: a trial, whose figures mean nothing.")
@click.option("--phase", "phases", multiple=True, type=click.Choice(PHASES), help="Only these; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gateway(phases: tuple[str, ...], *, quick: bool, as_json: bool) -> None:
    """Put the gateway under load: POSTs, 2,000 streams, and a burst of 500 slow requests (needs Java 17 and Maven)."""
    missing = missing_tools()
    if missing is not None:
        raise HeadraceError(missing)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the processes below inherit it: a file for each stream
    plan, wanted = QUICK if quick else Plan(), phases or PHASES
    figures: dict[str, float] = {"load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory(prefix="headrace-gateway-") as name:
        directory = Path(name)
        kafka = ApacheKafka(directory / "kafka")
        try:
            kafka.create()
            specs = [TopicSpec(topic.name, PARTITIONS, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
            create_topics(kafka.bootstrap, specs)
            if "burst" in wanted:  # first: the flow would take the other phases' requests for its own
                figures |= _burst(plan, kafka.bootstrap, directory) | _synchronous_burst(plan)
            if "post" in wanted:
                figures |= _post(plan, kafka.bootstrap, directory)
            if "sse" in wanted:
                figures |= _streams(plan, kafka.bootstrap, directory)
        finally:
            kafka.stop()
    emit("gateway", figures, _aims(figures), as_json=as_json)


def _aims(figures: Mapping[str, float]) -> list[Aim]:
    """Of the phases that ran."""
    aims = []
    if "burst_errors" in figures:
        met = figures["burst_accept_p99_ms"] < ACCEPT_AIM_MS
        aims.append(Aim("burst_accept_p99_ms", f"below {ACCEPT_AIM_MS:.0f}", met=met))
    zeros = (name for name in ("burst_errors", "sse_lost", "sse_repeated") if name in figures)
    return aims + [Aim(name, "0", met=figures[name] == 0) for name in zeros]
