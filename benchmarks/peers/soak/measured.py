"""A soak: the `answer` flow at a steady rate for an hour; its resident memory and its lag, looked at every 10 s.

Memory must stay flat. `plots/` gets a picture.
"""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from confluent_kafka import Producer

from benchmarks.peers.drawing import drawn
from benchmarks.peers.environments import ROOT, variables
from benchmarks.peers.measure import Program
from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.requests import RequestSubmitted
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.kafka.apache_kafka import ApacheKafka

SYSTEMS = ("headrace",)
RATE_S = 50
LATENCY_S = (0.5, 2.0)
SAMPLE_S = 10.0
PARTITIONS = 4
WARM = 1 / 6  # of a soak
FLAT = 0.05
START_S = 180.0
_LAG = 'headrace_consumer_lag_records{flow="answer",'


@dataclass(frozen=True)
class Sample:
    """One look."""

    at_s: float  # since the first request
    rss_mb: float  # of the flow's process tree
    lag: int  # requests that the flow has not taken up
    cpu_s: float  # so far
    sent: int
    calls: int  # of the model, that were answered


class Requests:
    """Sends `generate` requests at a steady rate while entered."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.is_set():
            while self.sent < (time.monotonic() - began) * RATE_S:
                request = RequestSubmitted(
                    job_id=f"soak-{self.sent:09d}",
                    tenant=f"tenant-{self.sent % 20}",
                    kind="generate",
                    prompt=f"Summarise what changed in section {self.sent} of the maintenance manual. " * 8,
                )
                self._producer.produce("requests.submitted", key=request.key_bytes, value=request.encode())
                self.sent += 1
            self._producer.poll(0)
            self._ended.wait(0.02)
        self._producer.flush(30.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def measure(request: Request) -> Findings:
    """So many minutes; one if quick."""
    samples = _soak(request.directory, 1.0 if request.quick else request.minutes, request.say)
    found, flat = soak_figures(samples)
    figures = {f"headrace.{name}": value for name, value in found.items()}
    if not request.quick:
        figures |= drawn("soak", [asdict(each) for each in samples])
    return Findings(figures, [Aim("headrace.rss_growth", f"{FLAT:.0%} at most once warm", met=flat)])


def soak_figures(samples: Sequence[Sample]) -> tuple[dict[str, object], bool]:
    """What a soak showed; and whether memory stayed flat: its last sixth beside the one after the first."""
    sixth = max(round(len(samples) * WARM), 1)
    early, late = samples[sixth : 2 * sixth] or samples, samples[-sixth:]
    before = sum(each.rss_mb for each in early) / len(early)
    after = sum(each.rss_mb for each in late) / len(late)
    growth = after / before - 1
    last = samples[-1]
    figures: dict[str, object] = {
        "minutes": round(last.at_s / 60, 1),
        "sent": last.sent,
        "calls": last.calls,
        "rss_mb_early": round(before, 1),
        "rss_mb_late": round(after, 1),
        "rss_growth": round(growth, 4),
        "lag_max": max(each.lag for each in samples),
        "lag_last": last.lag,
        "cpu_s_per_request": round(last.cpu_s / max(last.calls, 1), 4),
    }
    return figures, growth <= FLAT


def _soak(directory: Path, minutes: float, say: Callable[[str], None]) -> list[Sample]:
    broker = ApacheKafka(directory / "kafka")
    broker.create()
    model = subprocess.Popen(  # noqa: S603  # the tests' own server
        [sys.executable, "-m", "tests.llm_server", "--latency-s", *map(str, LATENCY_S)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        if model.stdout is None:
            raise RuntimeError("the model server has no stdout")
        url = json.loads(model.stdout.readline())["url"]
        topics = [TopicSpec(topic.name, PARTITIONS, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
        create_topics(broker.bootstrap, topics, timeout_s=120.0)
        return _watched(broker.bootstrap, url, directory, minutes, say)
    finally:
        model.kill()
        model.wait()
        broker.stop()


def _watched(bootstrap: str, url: str, directory: Path, minutes: float, say: Callable[[str], None]) -> list[Sample]:
    port = _free_port()
    told = variables(
        HEADRACE_KAFKA_BOOTSTRAP=bootstrap,
        HEADRACE_DATA_DIR=str(directory / "data"),
        HEADRACE_LLM_URL=url,
        HEADRACE_LLM_MODEL="test-1",
        HEADRACE_METRICS_PORT=str(port),
        HEADRACE_LOG_LEVEL="warning",
    )
    command = [sys.executable, "-m", "cli.main", "run", "answer"]
    found: list[Sample] = []
    with Program(command, told, log=directory / "answer.log") as flow:
        _wait_until_ready(port, flow)
        with Requests(bootstrap) as requests:
            began = time.monotonic()
            while time.monotonic() - began < minutes * 60:
                time.sleep(SAMPLE_S)
                if not flow.running:
                    raise RuntimeError(f"the flow ended with {flow.process.returncode}: {flow.said()}")
                page = _metrics(port)
                cpu_s = flow.cpu_s  # it looks, and so knows its memory
                found.append(
                    Sample(
                        round(time.monotonic() - began, 1),
                        round(flow.rss_bytes / 1e6, 1),
                        _sum(page, _LAG),
                        round(cpu_s, 2),
                        requests.sent,
                        _sum(page, 'headrace_attempts_total{outcome="ok"'),
                    )
                )
                say(json.dumps(asdict(found[-1])))  # one that is cut short has shown what it saw
    return found


def _wait_until_ready(port: int, flow: Program) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and flow.running:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):  # our own
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the flow is not ready: {flow.said()}")


def _metrics(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:  # our own
        text: str = page.read().decode()
    return text.splitlines()


def _sum(page: list[str], beginning: str) -> int:
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in page if line.startswith(beginning)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
