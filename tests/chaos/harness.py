"""A run under fire: real broker, real processes, real kills; from a printed seed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from connectors.embedder.port import Tokenizer
from connectors.embedder.sentence_transformer import SentenceTransformerEmbedder
from connectors.kafka.topics import TopicSpec, create_topics
from connectors.ledger.port import JobRecord
from connectors.ledger.postgres import PostgresStore
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from connectors.vector_index.edge import EdgeIndex
from operators.chunk import ChunkPolicy, cut
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.chaos.load import Load, make_load
from tests.chaos.oracle import Evidence, Kill, Outcomes, Verdict, judge, read_calls
from tests.chaos.victim import POINTS, Words
from tests.kafka.apache_kafka import ApacheKafka
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).parents[2]
CYCLE_S = 20.0  # a process that has not come to its point by then is killed where it is
START_S = 120.0
PARTITIONS = 4
CAPACITY = 16  # calls in flight: what a kill may leave ambiguous
CHUNKING = ChunkPolicy(40, 5)


@dataclass(frozen=True)
class Plan:
    """What is done to the flows; the same plan makes the same load and the same schedule of kills."""

    jobs: int = 400
    documents: int = 40
    kills: int = 8
    seed: int = 0
    latency_s: tuple[float, float] = (0.02, 0.3)
    fault_share: float = 0.04
    faults: tuple[str, ...] = ("429", "500", "503", "cut", "malformed", "no-usage", "wrong-usage", "hang")
    broker_restarts: int = 1
    outage_s: float = 5.0  # of the model server, once
    end_s: float = 240.0  # from the last kill until everything should have ended
    ledger: bool = True
    postgres: bool = False  # the ledger's database, instead of SQLite
    stock_sink: bool = False
    real_embedder: bool = False
    points: tuple[str, ...] = (*POINTS, "random")


@dataclass(frozen=True)
class Report:
    """What a run found."""

    plan: Plan
    verdict: Verdict
    kills_by_point: Mapping[str, int]
    recovery_s: tuple[float, ...]  # from each kill until a record was consumed again
    calls: int
    took_s: float

    def figures(self) -> dict[str, object]:
        """As the benchmark prints them."""
        counts = {name: count for name, count in asdict(self.verdict).items() if name != "examples"}
        return {
            "jobs": self.plan.jobs,
            "kills": sum(self.kills_by_point.values()),
            "kills_by_point": dict(self.kills_by_point),
            **counts,
            "calls": self.calls,
            "recovery_s_max": round(max(self.recovery_s, default=0.0), 2),
            "recovery_s_median": round(sorted(self.recovery_s)[len(self.recovery_s) // 2], 2) if self.recovery_s else 0,
            "took_s": round(self.took_s, 1),
        }


@dataclass
class _Seen:
    """What has been read of the topics so far; guarded by nothing, since one thread writes and others only look."""

    results: dict[str, set[bytes]] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    buried: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    malformed: set[tuple[str, int, int]] = field(default_factory=set)

    def take(self, topic: str, value: bytes) -> None:
        if topic == "jobs.status" and b'"state":"cancelled"' not in value:
            return
        payload = json.loads(value)
        job_id = payload["job_id"]
        if topic == "results.completed":
            self.results.setdefault(job_id, set()).add(value)
        elif topic == "documents.indexed":
            self.indexed.add(job_id)
        elif topic == "jobs.status":
            self.cancelled.add(job_id)
        elif "Invalid JSON" in payload["message"]:
            self.malformed.add((payload["topic"], payload["partition"], payload["offset"]))
        elif payload["ends_job"]:
            self.buried.add(job_id)


def _topics() -> list[TopicSpec]:
    return [TopicSpec(topic.name, PARTITIONS, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]


class _Watcher:
    """Reads every topic on which jobs end, from the beginning, in a thread of its own."""

    TOPICS = ("results.completed", "documents.indexed", "jobs.status", *(topic.name for topic in dead_letter_topics()))

    def __init__(self, bootstrap: str) -> None:
        self.seen = _Seen()
        self._stop = threading.Event()
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid4().hex, "log_level": 0})
        places = [TopicPartition(topic, part, OFFSET_BEGINNING) for topic in self.TOPICS for part in range(PARTITIONS)]
        self._consumer.assign(places)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(1000, timeout=0.1):
                topic, value = message.topic(), message.value()
                if message.error() is None and topic is not None and value is not None:
                    self.seen.take(topic, value)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()


class Victim:
    """One process that runs the flows; its lines are noted with their times."""

    def __init__(self, environment: Mapping[str, str], log: Path, kill: str) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.victim", "ingest", "answer"],
                env=os.environ | environment | {"VICTIM_KILL": kill},
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
            )
        self.heard: dict[str, float] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard[line.split(":")[0].strip()] = time.time()

    def wait(self, timeout_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Until it is dead, or `until` says so; False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None or until():
                return True
            time.sleep(0.005)
        return False

    def reap(self) -> int:
        """Its exit code, once all that it said is heard."""
        code = self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class ChaosRun:
    """One run of a plan in a directory of its own, on a broker of its own."""

    def __init__(self, plan: Plan, kafka: ApacheKafka, directory: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._kafka = kafka
        self._directory = directory
        self._say = say
        self._draw = Random(plan.seed)  # noqa: S311  # a schedule, not a secret
        self._load = make_load(plan.seed, plan.jobs, plan.documents)
        self._recovery_s: list[float] = []
        self._deaths: list[float] = []
        self._ledger = str(directory / "ledger.sqlite") if plan.ledger else "off"

    def run(self) -> Report:
        """Send, kill, wait until all has ended, and judge."""
        began = time.monotonic()
        with ExitStack() as stack:
            if self._plan.postgres:
                self._ledger = stack.enter_context(PostgresServer()).conninfo
            self._environment = self._flow_environment(stack.enter_context(self._model_server()))
            create_topics(self._kafka.bootstrap, _topics())
            watcher = stack.enter_context(closing(_Watcher(self._kafka.bootstrap)))
            self._producer = Producer({"bootstrap.servers": self._kafka.bootstrap, "acks": "all", "log_level": 0})
            self._fire()
            exit_code = self._finish(watcher)
            evidence = self._evidence(watcher.seen, exit_code)
        verdict = judge(evidence)
        kills = Counter(kill.point for kill in evidence.kills)
        calls = sum(map(len, evidence.calls.values()))
        took_s = time.monotonic() - began
        return Report(self._plan, verdict, kills, tuple(self._recovery_s), calls, took_s)

    @contextmanager
    def _model_server(self) -> Iterator[str]:
        plan = self._plan
        low, high = plan.latency_s
        options = ["--latency-s", str(low), str(high), "--fault-share", str(plan.fault_share), "--faults", *plan.faults]
        command = [sys.executable, "-m", "tests.llm_server", "--record", str(self._record), "--distinct", *options]
        process = subprocess.Popen([*command, "--seed", str(plan.seed)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()
            process.wait()
            process.stdout.close() if process.stdout is not None else None

    @property
    def _record(self) -> Path:
        return self._directory / "calls.jsonl"

    @property
    def _kills(self) -> Path:
        return self._directory / "kills.jsonl"

    def _flow_environment(self, llm_url: str) -> dict[str, str]:
        self._llm_url = llm_url
        return {
            "HEADRACE_KAFKA_BOOTSTRAP": self._kafka.bootstrap,
            "HEADRACE_DATA_DIR": str(self._directory / "data"),
            "HEADRACE_LEDGER": self._ledger,
            "HEADRACE_LLM_URL": llm_url,
            "HEADRACE_LLM_MODEL": "test",
            "HEADRACE_INFER_TIMEOUT_S": "3",
            "HEADRACE_INFER_CAPACITY": str(CAPACITY),
            "HEADRACE_CHUNK_TOKENS": str(CHUNKING.size_tokens),
            "HEADRACE_CHUNK_OVERLAP_TOKENS": str(CHUNKING.overlap_tokens),
            "HEADRACE_LOG_LEVEL": "warning",
            "VICTIM_KILLS": str(self._kills),
            "VICTIM_SINK": "stock" if self._plan.stock_sink else "ours",
            "VICTIM_EMBEDDER": "real" if self._plan.real_embedder else "hash",
        }

    def _fire(self) -> None:
        """One process after the other, each with its part of the load, each killed."""
        plan, messages = self._plan, self._load.messages
        restarts = {self._draw.randrange(plan.kills) for _ in range(plan.broker_restarts)}
        outage = self._draw.randrange(plan.kills) if plan.outage_s else -1
        points = [plan.points[n % len(plan.points)] for n in range(plan.kills)]
        self._draw.shuffle(points)
        for cycle, point in enumerate(points):
            first, last = (len(messages) * at // plan.kills for at in (cycle, cycle + 1))
            for sent in messages[first:last]:
                self._producer.produce(sent.topic, sent.value, sent.key)
            assert self._producer.flush(60) == 0
            if cycle == outage:
                self._refuse_calls()
            if cycle in restarts:
                point = "random"  # noqa: PLW2901  # the outage comes first
            victim = self._start(point)
            if cycle in restarts:
                # Both flows: one that starts meanwhile ends when no broker answers for 10 s, as it should.
                victim.wait(START_S, lambda: {"consuming", "reading"} <= victim.heard.keys())  # noqa: B023  # called at once
                self._restart_broker()
                victim.wait(self._draw.uniform(2.0, 4.0))  # some snapshots long, so that a loss is not undone by a kill
            self._await_death(victim, point)
            self._say(f"{cycle + 1}/{plan.kills} killed {point}")

    def _refuse_calls(self) -> None:
        address = self._llm_url.removesuffix("/v1") + "/outage"
        body = json.dumps({"seconds": self._plan.outage_s}).encode()
        with urllib.request.urlopen(urllib.request.Request(address, body, method="PUT")):  # noqa: S310  # our own server
            self._say(f"the model server refuses connections for {self._plan.outage_s} s")

    def _restart_broker(self) -> None:
        self._say("broker stops and starts")
        self._kafka.stop()
        time.sleep(self._draw.uniform(0.0, 4.0))
        self._kafka.start()

    def _start(self, point: str) -> Victim:
        often = max(self._plan.jobs // self._plan.kills // 2, 1)
        number = {"after-upsert": 3, "after-show": 2, "during-snapshot": 8, "after-sink": 60}.get(point, often)
        kill = "" if point in {"random", "none"} else f"{point}:{self._draw.randint(1, number)}"
        return Victim(self._environment, self._directory / "victim.log", kill)

    def _await_death(self, victim: Victim, point: str) -> None:
        if point == "random":
            assert victim.wait(START_S, lambda: "running" in victim.heard), self._log()
            victim.wait(self._draw.uniform(0.0, 3.0))
        else:
            victim.wait(CYCLE_S)
        if victim.process.poll() is None:
            with self._kills.open("a") as file:
                file.write(json.dumps({"point": "random", "at": time.time(), "job_id": None}) + "\n")
            victim.process.send_signal(signal.SIGKILL)
        code = victim.reap()
        assert code == -signal.SIGKILL, f"ended with {code} by itself: {self._log()}"
        self._note_recovery(victim)
        self._deaths.append(time.time())

    def _note_recovery(self, victim: Victim) -> None:
        if self._deaths and "consuming" in victim.heard:
            self._recovery_s.append(victim.heard["consuming"] - self._deaths[-1])

    def _log(self) -> str:
        return (self._directory / "victim.log").read_text()[-3000:]

    def _finish(self, watcher: _Watcher) -> int | None:
        """A last process that nobody kills, until every job has ended; then it is asked to end. Its exit code."""
        victim = self._start("none")
        load, seen = self._load, watcher.seen
        malformed = sum(not sent.valid for sent in load.messages)

        def ended() -> bool:
            return (
                load.requests <= seen.results.keys() | seen.buried | seen.cancelled
                and load.uploads <= seen.indexed | seen.buried
                and len(seen.malformed) >= malformed
            )

        # Also if nothing is left to do: SIGTERM before the process has its handlers would just kill it.
        assert victim.wait(START_S, lambda: "running" in victim.heard), self._log()
        done = victim.wait(self._plan.end_s, ended)
        self._say(f"all ended: {done and victim.process.poll() is None}")
        victim.process.send_signal(signal.SIGTERM)
        code = victim.reap() if victim.wait(START_S) else None
        self._note_recovery(victim)
        # What the drain wrote, and duplicates of what has ended, are read as well: until nothing more comes.
        count = -1
        while count != (count := sum(map(len, seen.results.values())) + len(seen.buried) + len(seen.cancelled)):
            time.sleep(1.0)
        return code

    def _tokenizer(self) -> Tokenizer:
        """The one that the flows cut by."""
        return SentenceTransformerEmbedder().tokenizer if self._plan.real_embedder else Words()

    def _evidence(self, seen: _Seen, exit_code: int | None) -> Evidence:
        load = self._load
        lines = self._kills.read_text().splitlines() if self._kills.exists() else []
        missing, extra = asyncio.run(_compare_points(self._directory / "data" / "vectors", load, self._tokenizer()))
        return Evidence(
            requests=load.requests,
            uploads=load.uploads,
            malformed=sum(not sent.valid for sent in load.messages),
            outcomes=Outcomes(
                {job_id: frozenset(values) for job_id, values in seen.results.items()},
                frozenset(seen.indexed),
                frozenset(seen.buried),
                len(seen.malformed),
                frozenset(seen.cancelled),
            ),
            calls=read_calls(self._record),
            kills=[Kill(**json.loads(line), seen_at=died) for line, died in zip(lines, self._deaths, strict=True)],
            ledger=asyncio.run(_ledger(self._ledger, load)) if self._plan.ledger else {},
            missing_points=missing,
            extra_points=extra,
            exit_code=exit_code,
        )


async def _ledger(place: str, load: Load) -> dict[str, JobRecord]:
    store = PostgresStore(place) if place.startswith("postgresql://") else SqliteStore(Path(place))
    ledger = SqlLedger(store, "oracle")
    try:
        found = [await ledger.find(job_id) for job_id in sorted(load.requests)]
    finally:
        await ledger.close()
    return {record.job_id: record for record in found if record is not None}


async def _compare_points(directory: Path, load: Load, tokenizer: Tokenizer) -> tuple[int, int]:
    """Texts that should be in the index and are not, and points that should not be there, duplicates included."""
    index = EdgeIndex(directory)
    missing = extra = held = 0
    try:
        for document_id, text in load.documents.items():
            wanted = Counter(_texts(text, tokenizer))
            points = await index.list_document("documents", tenant="default", document_id=document_id)
            found = Counter(point.text for point in points)
            missing += (wanted - found).total()
            extra += (found - wanted).total()
            held += len(points)
        return missing, extra + await index.count("documents") - held
    finally:
        await index.close()


def _texts(text: str | None, tokenizer: Tokenizer) -> list[str]:
    return [] if text is None else [chunk.text for chunk in cut(text, (), tokenizer.offsets(text), CHUNKING)]


def run_chaos(plan: Plan, directory: Path, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run a plan on an Apache Kafka of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    kafka = ApacheKafka(directory / "kafka")
    try:
        kafka.create()
        return ChaosRun(plan, kafka, directory, say).run()
    finally:
        kafka.stop()


if [topic.name for topic in CATALOGUE if topic.ends_job] != ["documents.indexed", "results.completed"]:
    raise RuntimeError("the watcher reads other topics than those on which jobs end")
