"""Control plane: request events through Apache Kafka, decoded, validated, deduplicated, enriched and produced again.

All systems read one topic, filled once before any of them starts, with events that are the same to the byte. Each run
has an output topic of its own, whose records the broker stamps with the time of their arrival: the rate is that of
what arrived between the first and the last. Costs are of the same stretch, as near as the harness sees it.

What a slow system has not done within `RUN_S` is left out: its rate is that of what has arrived by then.

A further run of each is killed (SIGKILL) when half of the results have arrived, and started again. The output of all
runs is read: an id without a result is lost, and each result beyond an id's first one is a repeated effect.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.peers.control.work import PARTITIONS, Events, Place, events
from benchmarks.peers.environments import Unavailable, python_of, variables, versions_of
from benchmarks.peers.measure import Program
from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim
from connectors.kafka.client import watermarks
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.topics import CATALOGUE, dead_letter_topic, dead_letter_topics
from tests.kafka.apache_kafka import ApacheKafka

EVENTS = 200_000
QUICK_EVENTS = 4_000
SOURCE = "requests.submitted"
RUN_S = 120.0
BEGIN_S = 240.0  # until the first result, also after a kill: a group waits for its dead member for 45 s or 60 s
DONE_S = 75.0
REST_S = 400.0  # after a kill
QUIET_S = 12.0  # without a result, after which no more are expected; more than any system's commit interval
_LOOK_S = 0.1

F = TypeVar("F")
Command = Callable[[Path, Place], list[str]]


@dataclass(frozen=True)
class System:
    """How to run one."""

    name: str
    environment: str
    command: Command
    variables: Mapping[str, str] = field(default_factory=dict)
    prepare: Command | None = None  # run once before the first start
    read_committed: bool = False  # what it produces in transactions is an effect once they are committed


def _module(name: str) -> Command:
    return lambda python, _: [str(python), "-m", f"benchmarks.peers.control.{name}"]


def _bytewax(name: str, snapshot_s: str) -> System:
    return System(
        name,
        "bytewax",
        lambda python, at: [
            *(str(python), "-m", "bytewax.run", "benchmarks.peers.control.bytewax_flow"),
            *("-r", str(at.state), "-s", snapshot_s, "-b", "0"),
        ],
        prepare=lambda python, at: [str(python), "-m", "bytewax.recovery", str(at.state), str(PARTITIONS)],
    )


SYSTEMS_BY_NAME = {
    each.name: each
    for each in (
        System("headrace", "headrace", _module("headrace_flow")),
        System("quixstreams", "quixstreams", _module("quixstreams_flow")),
        System(
            "quixstreams_exactly_once",
            "quixstreams",
            _module("quixstreams_flow"),
            variables={"PEERS_GUARANTEE": "exactly-once"},
            read_committed=True,
        ),
        System(
            "faust",
            "faust",
            lambda python, _: [
                str(python),
                "-m",
                "benchmarks.peers.control.faust_flow",
                "--loop",
                "uvloop",
                "worker",
                "-l",
                "warn",
            ],
        ),
        _bytewax("bytewax", "30"),  # as its page on recovery has it
        _bytewax("bytewax_every_second", "1"),  # as often as Headrace
        System("by_hand", "by_hand", _module("by_hand_flow")),
    )
}
SYSTEMS = tuple(SYSTEMS_BY_NAME)


@dataclass(frozen=True)
class Whole:
    """One run to the end."""

    events_s: float
    cpu_s_per_100k: float
    peak_rss_mb: float
    start_s: float  # from the start of the program to the first result
    share: float  # of the results, that had arrived within RUN_S
    lost: int | None  # None where not all had arrived
    repeated: int  # results beyond the first of an id


@dataclass(frozen=True)
class Killed:
    """One run with a kill in the middle."""

    arrived: int
    lost: int
    repeated: int
    silence_s: float | None  # from the kill to the next result; None if none came


class Bench:
    """A broker with the input, for all runs."""

    def __init__(self, broker: ApacheKafka, load: Events, directory: Path) -> None:
        self.bootstrap = broker.bootstrap
        self.load = load
        self.directory = directory
        self._runs = 0
        needed = {SOURCE, dead_letter_topic(SOURCE), "jobs.status", "cancellations.requested"}
        topics = [
            TopicSpec(topic.name, PARTITIONS, topic.config)
            for topic in (*CATALOGUE, *dead_letter_topics())
            if topic.name in needed
        ]
        create_topics(self.bootstrap, topics)
        self._fill()

    def _fill(self) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "linger.ms": 20})
        for key, value in self.load.messages:
            while True:
                try:
                    producer.produce(SOURCE, key=key, value=value)
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer.flush(120.0):
            raise RuntimeError("the input could not be written")

    def place(self, system: System) -> Place:
        """Topics, a group and a directory of a run's own."""
        self._runs += 1
        name = f"{system.name}.{self._runs}"
        state = self.directory / name
        state.mkdir(mode=0o700)
        arrival = {"message.timestamp.type": "LogAppendTime"}
        specs = [TopicSpec(f"control.{name}", PARTITIONS, arrival), TopicSpec(f"control.{name}.letters", PARTITIONS)]
        create_topics(self.bootstrap, specs)
        return Place(self.bootstrap, SOURCE, f"control.{name}", f"control.{name}.letters", f"control-{name}", state)

    def program(self, system: System, at: Place, more: Mapping[str, str] | None = None) -> Program:
        """It, not yet started. Raises Unavailable."""
        told = variables(
            **at.variables(),
            **system.variables,
            HEADRACE_KAFKA_BOOTSTRAP=at.bootstrap,
            HEADRACE_DATA_DIR=str(at.state / "data"),
            HEADRACE_GROUP_PREFIX=at.group,
            **(more or {}),
        )
        return Program(system.command(python_of(system.environment), at), told, log=self.directory / f"{at.group}.log")

    def prepare(self, system: System, at: Place) -> None:
        """What comes before the first start. Raises Unavailable."""
        if system.prepare is None:
            return
        command = system.prepare(python_of(system.environment), at)
        with Program(command, variables(**at.variables()), log=self.directory / f"{at.group}.log") as program:
            if program.wait(60.0) != 0:
                raise Unavailable(f"{' '.join(command)}: {program.said()}")

    def results(self, topic: str, *, read_committed: bool = False) -> list[Message]:
        """All that is in a topic now."""
        return read_all(self.bootstrap, topic, read_committed=read_committed)


class Ends:
    """How many records have arrived in a topic, asked as often as needed over one connection."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "ends", "enable.auto.commit": False})
        self._places = [TopicPartition(topic, each) for each in range(PARTITIONS)]

    def __call__(self) -> int:
        """Now; transaction markers count as well."""
        return sum(watermarks(self._consumer, place, timeout_s=30.0)[1] for place in self._places)

    def close(self) -> None:
        """End the connection."""
        self._consumer.close()


def read_all(bootstrap: str, topic: str, *, read_committed: bool) -> list[Message]:
    """All records of a topic up to where it ends now; aborted ones only without `read_committed`."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "results",
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if read_committed else "read_uncommitted",
            "enable.partition.eof": True,
        }
    )
    messages: list[Message] = []
    try:
        consumer.assign([TopicPartition(topic, each, 0) for each in range(PARTITIONS)])
        ended: set[int] = set()
        until = time.monotonic() + 120.0
        while len(ended) < PARTITIONS:
            if time.monotonic() > until:
                raise RuntimeError(f"{topic} could not be read to its end")
            for message in consumer.consume(10_000, timeout=0.5):
                if message.error() is None:
                    messages.append(message)
                else:
                    ended.add(message.partition() or 0)
    finally:
        consumer.close()
    return messages


def whole(bench: Bench, system: System, more: Mapping[str, str] | None = None) -> Whole:
    """Run it until each id has its result, or for RUN_S. Raises Unavailable if it ends before."""
    at, expected = bench.place(system), len(bench.load.ids)
    ends = Ends(bench.bootstrap, at.output)
    bench.prepare(system, at)
    try:
        with bench.program(system, at, more) as program:
            _until(program, lambda: ends() > 0, BEGIN_S, "a first result")
            start_s, cpu_began = program.wall_s, program.cpu_s
            _soon(program, lambda: ends() >= expected, RUN_S)
            cpu_s, peak = program.cpu_s - cpu_began, program.peak_rss_bytes
            program.terminate()
    finally:
        ends.close()
    results = bench.results(at.output, read_committed=system.read_committed)
    stamps = sorted(message.timestamp()[1] for message in results)
    ids = _ids(results)
    arrived = min(expected, len(stamps))
    seconds = (stamps[arrived - 1] - stamps[0]) / 1000
    # Of all events that were read, repeated and malformed ones included, as far as results tell.
    total = len(bench.load.messages) * arrived / expected
    return Whole(
        total / seconds,
        cpu_s / total * 100_000,
        peak / 1e6,
        start_s,
        arrived / expected,
        lost=len(bench.load.ids - ids.keys()) if arrived == expected else None,
        repeated=ids.total() - len(ids),
    )


def _ids(results: Sequence[Message]) -> Counter[str]:
    """How many results each id has."""
    return Counter((message.key() or b"").decode() for message in results)


def killed(bench: Bench, system: System) -> Killed:
    """Kill it at half-way, start it again, and count what has arrived when nothing more comes."""
    at, expected = bench.place(system), len(bench.load.ids)
    ends = Ends(bench.bootstrap, at.output)
    bench.prepare(system, at)
    try:
        with bench.program(system, at) as program:
            _until(program, lambda: ends() >= expected // 2, BEGIN_S + RUN_S, "half of the results")
            program.kill()
        killed_at, before = time.monotonic(), ends()
        with bench.program(system, at) as program:
            silence_s = None
            # Where all had arrived before the kill none need come; a dead member keeps its group for a minute at most.
            if _soon(program, lambda: ends() > before, BEGIN_S if before < expected else DONE_S):
                silence_s = time.monotonic() - killed_at
                _until_quiet(program, ends)
            program.terminate()
    finally:
        ends.close()
    found = _ids(bench.results(at.output, read_committed=system.read_committed))
    lost = len(bench.load.ids - found.keys())
    return Killed(found.total(), lost, found.total() - len(found), silence_s)


def _until(program: Program, reached: Callable[[], bool], timeout_s: float, what: str) -> None:
    if not _soon(program, reached, timeout_s):
        raise Unavailable(f"{what}: not within {timeout_s:.0f} s; {program.said()}")


def _soon(program: Program, reached: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not reached():
        if not program.running:
            raise Unavailable(f"ended with exit code {program.process.returncode}: {program.said()}")
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_S)
    return True


def _until_quiet(program: Program, ends: Ends) -> None:
    last, quiet_since, until = ends(), time.monotonic(), time.monotonic() + REST_S
    while time.monotonic() - quiet_since < QUIET_S:
        if not program.running:
            raise Unavailable(f"ended with exit code {program.process.returncode}: {program.said()}")
        if time.monotonic() > until:
            raise Unavailable(f"results still come after {REST_S:.0f} s")
        now = ends()
        if now != last:
            last, quiet_since = now, time.monotonic()
        time.sleep(_LOOK_S)


def measure(request: Request) -> Findings:
    """Rounds of all systems, alternately; then one in which each is killed."""
    chosen = [system for system in SYSTEMS_BY_NAME.values() if request.wants(system.name)]
    rounds = 1 if request.quick else request.rounds
    figures: dict[str, object] = {"rounds": rounds}
    count = request.events or (QUICK_EVENTS if request.quick else EVENTS)
    left = [system for system in chosen if _available(system, figures, request)]
    wholes = _in_rounds(left, rounds, whole, count, request, request.directory, figures)
    left = [system for system in left if system.name in wholes]
    kills = _in_rounds(left, 1, killed, count, request, request.directory / "killed", figures)
    for name, runs in wholes.items():
        figures |= {
            f"{name}.events_s": round(median(run.events_s for run in runs)),
            f"{name}.events_s_rounds": [round(run.events_s) for run in runs],
            f"{name}.cpu_s_per_100k": round(median(run.cpu_s_per_100k for run in runs), 2),
            f"{name}.peak_rss_mb": round(max(run.peak_rss_mb for run in runs), 1),
            f"{name}.start_s": round(median(run.start_s for run in runs), 2),
            f"{name}.share": round(min(run.share for run in runs), 3),
            f"{name}.lost_without_a_kill": [run.lost for run in runs],
            f"{name}.repeated_without_a_kill": [run.repeated for run in runs],
        }
    for name, of_system in kills.items():
        figures |= {
            f"{name}.arrived": [kill.arrived for kill in of_system],
            f"{name}.lost": [kill.lost for kill in of_system],
            f"{name}.repeated": [kill.repeated for kill in of_system],
            f"{name}.silence_s": [None if kill.silence_s is None else round(kill.silence_s, 1) for kill in of_system],
        }
    return Findings(figures, _aims(wholes, kills, figures))


def _in_rounds(  # one call, by position, beside the other
    systems: Sequence[System],
    rounds: int,
    run: Callable[[Bench, System], F],
    count: int,
    request: Request,
    directory: Path,
    figures: dict[str, object],
) -> dict[str, list[F]]:
    """What each system did, in turns, each round beginning with another one; one that cannot is in no further round."""
    what = run.__name__
    found: dict[str, list[F]] = {}
    left = list(systems)
    request.say(f"making {count:,} events")
    load = events(count)
    directory.mkdir(exist_ok=True)
    broker = ApacheKafka(directory / "kafka")
    broker.create()
    try:
        bench = Bench(broker, load, directory)
        for number in range(rounds):
            first = number % len(left) if left else 0
            for system in (*left[first:], *left[:first]):
                try:
                    one = run(bench, system)
                except Unavailable as error:
                    figures[f"{system.name}.{what}_failed"] = str(error)
                    request.say(f"{what}: {system.name} is left out: {error}")
                    left.remove(system)
                    continue
                found.setdefault(system.name, []).append(one)
                request.say(f"{what}, round {number + 1}: {system.name}: {one}")
    finally:
        broker.stop()
    figures |= {f"{what}.events": count, f"{what}.unique_ids": len(load.ids), f"{what}.malformed": load.malformed}
    return found


def _available(system: System, figures: dict[str, object], request: Request) -> bool:
    try:
        figures[f"{system.name}.versions"] = versions_of(system.environment)
    except Unavailable as error:
        figures[f"{system.name}.unavailable"] = str(error)
        request.say(f"{system.name} is left out: {error}")
        return False
    return True


_RATIOS: Sequence[tuple[str, float]] = (("quixstreams", 2.0), ("faust", 5.0), ("bytewax", 2.0), ("by_hand", 0.4))


def _aims(wholes: dict[str, list[Whole]], kills: dict[str, list[Killed]], figures: dict[str, object]) -> list[Aim]:
    """Ratios by rounds, so that a machine that slows down slows both."""
    aims: list[Aim] = []
    ours = wholes.get("headrace", [])
    for name, least in _RATIOS:
        pairs = list(zip(ours, wholes.get(name, []), strict=False))
        if not pairs:
            continue
        ratio = median(mine.events_s / theirs.events_s for mine, theirs in pairs)
        figures[f"headrace.ratio_to_{name}"] = round(ratio, 2)
        aims.append(Aim(f"headrace.ratio_to_{name}", f"{least:g} at least", met=ratio >= least))
    mine = kills.get("headrace")
    if mine:
        aims.append(Aim("headrace.lost", "0", met=all(kill.lost == 0 for kill in mine)))
        aims.append(Aim("headrace.repeated", "0", met=all(kill.repeated == 0 for kill in mine)))
    return aims
