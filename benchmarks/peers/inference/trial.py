"""The parts of a trial of inference: who takes the jobs and says what became of them, and what the model server saw."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from benchmarks.offload import ideal_s
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.measure import Program
from tests.chaos.oracle import Call, Kill

FAULTS = ("429", "503", "hang", "cut")
START_S = 60.0
_SUBMIT_S = 60.0
_DRAIN_S = 5.0


@dataclass(frozen=True)
class Load:
    """What is asked of every system."""

    jobs: int
    latency_s: tuple[float, float]  # drawn uniformly, by job: the same for all systems
    slots: int
    patience_s: float  # from the submission to the last answer, and again from a kill
    fault_share: float = 0.02

    @property
    def ideal_per_s(self) -> float:
        """Slots over mean latency."""
        return self.slots / (sum(self.latency_s) / 2)

    @property
    def ids(self) -> list[str]:
        """In the order of submission."""
        return [f"job-{number}" for number in range(self.jobs)]


class Jobs(Protocol):
    """Submits jobs, and knows what became of them."""

    def submit(self) -> None:
        """All of them."""

    def ended(self) -> tuple[int, int]:
        """How many jobs have an answer, and how many ended without one."""

    def again(self) -> dict[str, int]:
        """Answers beyond the first of each job: `repeated_answers`, and those of them that say something else."""


class KafkaJobs:
    """Jobs as records of a topic, answers and failures on two others; while entered."""

    def __init__(self, bootstrap: str, topics: tuple[str, str, str], payloads: Mapping[str, object]) -> None:
        self._bootstrap = bootstrap
        self._questions, *self._outcomes = topics
        self._payloads = payloads
        self._ended: dict[str, set[str]] = {topic: set() for topic in self._outcomes}
        self._first: dict[str, bytes] = {}
        self._again = {"repeated_answers": 0, "differing_answers": 0}
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def submit(self) -> None:
        """All of them, acknowledged."""
        producer = Producer({"bootstrap.servers": self._bootstrap})
        for job_id, payload in self._payloads.items():
            producer.produce(self._questions, json.dumps(payload).encode(), job_id.encode())
        if producer.flush(_SUBMIT_S):
            raise RuntimeError(f"{self._questions}: not all jobs were taken within {_SUBMIT_S:.0f} s")

    def ended(self) -> tuple[int, int]:
        """Of the jobs."""
        answered, failed = (self._ended[topic] for topic in self._outcomes)
        return len(answered), len(failed - answered)

    def again(self) -> dict[str, int]:
        """On the topic."""
        return dict(self._again)

    def _read(self) -> None:
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "judge", "enable.auto.commit": False})
        parts = [
            TopicPartition(topic, number, OFFSET_BEGINNING)
            for topic in self._outcomes
            for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        consumer.assign(parts)
        while not self._stop.is_set():
            for message in consumer.consume(500, timeout=0.2):
                topic, value = message.topic(), message.value()
                if message.error() is not None or topic is None or value is None:
                    continue
                job_id = json.loads(value)["job_id"]
                if topic == self._outcomes[0]:
                    first = self._first.setdefault(job_id, value)
                    self._again["repeated_answers"] += job_id in self._ended[topic]
                    self._again["differing_answers"] += value != first
                self._ended[topic].add(job_id)
        consumer.close()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class ProgramJobs:
    """Jobs that a program of the peer's own submits and watches: it says how many have ended, once a second."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._program = Program(command, variables, log=log)
        self._last: dict[str, object] = {}

    def __enter__(self) -> Self:
        return self

    def submit(self) -> None:
        """All of them: it does so when it starts."""
        self._program.__enter__()
        self._program.line(_SUBMIT_S)

    def ended(self) -> tuple[int, int]:
        """As it last said, a moment later."""
        try:
            self._last = self._program.line(_SUBMIT_S)
        except Unavailable:
            if self._program.running or self._program.process.returncode != 0:
                raise  # else it has said all
        return int(str(self._last.get("answered", 0))), int(str(self._last.get("failed", 0)))

    def again(self) -> dict[str, int]:
        """None: a result backend keeps the last answer of each job."""
        return {}

    def __exit__(self, *what: object) -> None:
        self._program.__exit__(*what)


@contextmanager
def model_server(load: Load, directory: Path, python: str, variables: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """The tests' model server with these slots and faults: its URL, and the record of its calls."""
    record = directory / "calls"
    low, high = load.latency_s
    options = ["--latency-s", str(low), str(high), "--slots", str(load.slots), "--by-job", "--distinct"]
    options += ["--fault-share", str(load.fault_share), "--faults", *FAULTS]
    command = [python, "-m", "tests.llm_server", "--record", str(record), *options]
    with Program(command, variables, log=directory / "server.log") as program:
        yield str(program.line(START_S)["url"]), record


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    """A Redis server of the trial's own, with Redis's defaults; its URL. Raises Unavailable where there is none."""
    server = shutil.which("redis-server")
    if server is None:
        raise Unavailable("redis-server is not on the PATH (apt install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    with ExitStack() as stack:
        log = stack.enter_context((directory / "redis.log").open("wb"))
        process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))  # noqa: S603  # found on PATH
        stack.callback(process.terminate)
        yield f"redis://127.0.0.1:{port}/0"


def seen(calls: Mapping[str, Sequence[Call]], load: Load) -> dict[str, float]:
    """How well the server was used in a run without a kill, from its record.

    `of_ideal`: answers per second against slots over mean latency, while jobs were waiting: the share of its slots
    that were busy, from the first call to the moment when the last job was called for the first time.
    `of_ideal_with_ends`: jobs per second of the whole run against the same; the end of a run, when no more jobs wait,
    leaves slots empty whoever calls. `of_schedule`: the time that the same calls take if each begins the moment that a
    slot is free, against what they took.
    """
    every = sorted((call for each in calls.values() for call in each), key=lambda call: call.began_at)
    began = every[0].began_at
    full_until = max(min(call.began_at for call in each) for each in calls.values())
    ended = max(call.ended_at or call.began_at for call in every)
    busy_s = sum(max(min(call.ended_at or ended, full_until) - call.began_at, 0.0) for call in every)
    durations_s = [(call.ended_at or ended) - call.began_at for call in every]
    return {
        "calls": len(every),
        "throughput_per_s": round(len(calls) / (ended - began), 2),
        "makespan_s": round(ended - began, 1),
        "of_ideal": round(busy_s / max(load.slots * (full_until - began), 1e-9), 3),
        "of_ideal_with_ends": round(len(calls) / (ended - began) / load.ideal_per_s, 3),
        "of_schedule": round(ideal_s(durations_s, load.slots) / (ended - began), 3),
    }


def repeated(calls: Mapping[str, Sequence[Call]], kill: Kill) -> dict[str, int]:
    """Calls that were made again although no failure was told, as the chaos tests judge them.

    Outside of the window: again after an answer that had arrived a second or more before the kill.
    """
    found = {"duplicated_calls": 0, "duplicated_calls_outside_window": 0}
    for each in calls.values():
        spent = [call for call in sorted(each, key=lambda call: call.number) if call.spent]
        found["duplicated_calls"] += max(len(spent) - 1, 0)
        found["duplicated_calls_outside_window"] += sum(not call.open_at([kill]) for call in spent[:-1])
    every = [call for each in calls.values() for call in each]
    found["in_flight_at_kill"] = sum(
        call.began_at <= kill.at and (call.ended_at or kill.seen_at) >= kill.at for call in every
    )
    return found


def wait_ended(jobs: Jobs, count: int, until: float) -> bool:
    """Wait until so many jobs have ended; False if the time is up."""
    while time.monotonic() < until:
        if sum(jobs.ended()) >= count:
            return True
        time.sleep(0.1)
    return False
