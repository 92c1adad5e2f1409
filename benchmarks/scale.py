"""Several processes: how long a restart, a rescale and a kill keep a flow from answering, and what is lost by it."""

import json
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Self

import click
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.report import Aim, emit
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.errors import HeadraceError
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.chaos.members import LIMIT, Load, called_again, cluster, kill, shared, slice_of
from tests.chaos.oracle import Kill
from tests.chaos.parts import RESULTS, Flows, ModelServer, Scene
from tests.headrace_process import PlainClient
from tests.kafka.apache_kafka import ApacheKafka, missing_tools
from tests.kafka.client import wait_for

PARTITIONS = 8
LATENCY_S = (0.02, 0.2)
WARM = 10  # answers before anything is done to a flow
AIM_S = 10.0


class Answers:
    """When each job's first result came, as a consumer of the topic sees it."""

    def __init__(self, bootstrap: str) -> None:
        self.at: dict[str, float] = {}  # in order of arrival
        self._ended = threading.Event()
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "scale", "enable.auto.commit": False})
        known = self._consumer.list_topics(RESULTS, timeout=10).topics[RESULTS].partitions
        self._consumer.assign([TopicPartition(RESULTS, each, OFFSET_BEGINNING) for each in known])
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._ended.is_set():
            for message in self._consumer.consume(100, timeout=0.02):
                if message.error() is None:
                    self.at.setdefault(json.loads(message.value() or b"{}")["job_id"], time.time())

    def after(self, moment: float, mine: Callable[[str], bool] = lambda _job_id: True) -> float:
        """Seconds from `moment` until the next answer, which is waited for."""
        return wait_for("an answer", lambda: self._first_after(moment, mine), 120.0) or 0.0

    def _first_after(self, moment: float, mine: Callable[[str], bool]) -> float | None:
        return next((at - moment for job_id, at in list(self.at.items()) if at > moment and mine(job_id)), None)

    def more(self, count: int) -> None:
        """Wait for so many more."""
        enough = len(self.at) + count
        wait_for("answers", lambda: len(self.at) >= enough, 120.0)

    def longest_gap_s(self, since: float, until: float, mine: Callable[[str], bool]) -> float:
        """Without an answer to one of these jobs."""
        moments = [since, *(at for job_id, at in list(self.at.items()) if since < at < until and mine(job_id)), until]
        return max(later - earlier for earlier, later in pairwise(moments))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._consumer.close()


class Trial:
    """A flow under load to which things are done."""

    def __init__(self, variables: dict[str, str], answers: Answers, load: Load) -> None:
        self.kills: list[Kill] = []
        self.took: dict[str, list[float]] = {}
        self._variables = variables
        self._answers = answers
        self._load = load

    def note(self, name: str, seconds: float) -> None:
        """One measurement."""
        self.took.setdefault(name, []).append(seconds)

    def rescaled(self, sizes: Sequence[int]) -> None:
        """Run with each number of processes in turn; from SIGTERM to the first answer of the next number."""
        asked: tuple[float, int] | None = None
        for size in sizes:
            with cluster(size, self._variables) as members:
                if asked is not None:
                    moment, former = asked
                    # What was answered in the drain does not count: the others' exit is before this.
                    self.note(f"{former}_to_{size}_s", time.time() - moment + self._answers.after(time.time()))
                self._answers.more(WARM)
                asked = time.time(), size
                members[-1].send(signal.SIGTERM)
                _ended_well(members)
                self.note("drain_s", time.time() - asked[0])

    def killed(self, size: int) -> None:
        """Kill one of `size`; until the others have ended, and until the first answer after the start of all."""
        with cluster(size, self._variables) as members:
            self._answers.more(WARM)
            self.kills.append(kill(members[0], members))
            self.note(f"peers_ended_s_of_{size}", self.kills[-1].seen_at - self.kills[-1].at)
        with cluster(size, self._variables) as members:
            self.note(f"crash_{size}_s", time.time() - self.kills[-1].at + self._answers.after(time.time()))
            members[0].send(signal.SIGTERM)
            _ended_well(members)

    def killed_slice(self) -> None:
        """Kill one of two slices; until its next answer, and how long the other one was silent."""
        jobs: list[set[str]] = [set(), set()]

        def of(number: int) -> Callable[[str], bool]:
            return lambda job_id: job_id in jobs[number]

        with slice_of(0, 2, self._variables) as steady, slice_of(1, 2, self._variables) as other:
            for each in (steady, other):
                each.running()
            self._answers.more(WARM)
            self.kills.append(kill(other, [other]))
            with slice_of(1, 2, self._variables) as again:
                again.running()
                started = time.time()
                jobs[:] = [set(self._load.jobs_of(each)) for each in self._load.tenants_of_slices(2)]
                again_s = self._answers.after(started, of(1))
                self.note("crash_slice_s", started - self.kills[-1].at + again_s)
                self.note(
                    "neighbour_gap_s",
                    self._answers.longest_gap_s(self.kills[-1].at, started + again_s, of(0)),
                )
                self._load.end()
                wait_for("all answers", lambda: self._load.jobs_left(self._answers.at) == 0, 120.0)
                _ended_well([steady, again], all_of_them=True)


def _ended_well(members: Sequence[Flows], *, all_of_them: bool = False) -> None:
    for each in members if all_of_them else ():
        each.send(signal.SIGTERM)
    codes = [each.ended() for each in members]
    if any(codes):
        raise HeadraceError(f"processes ended with {codes}: {members[0].text}")


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often each thing is done.")
@click.option("--real-embedder", is_flag=True, help="Load the default model at each start, as a deployment would.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def scale(rounds: int, *, real_embedder: bool, as_json: bool) -> None:
    """Restart, rescale and kill `answer` under load, in clusters and slices (needs Java 17 and Maven)."""
    missing = missing_tools()
    if missing is not None:
        raise HeadraceError(missing)
    directory = Path(tempfile.mkdtemp(prefix="headrace-scale-"))
    broker = ApacheKafka(directory / "kafka")
    try:
        broker.create()
        figures, violations = _measure(broker, directory, rounds, real_embedder=real_embedder)
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)
    slowest = max(value for name, value in figures.items() if name.endswith("_s") and isinstance(value, float))
    aims = [
        Aim("violations", "none: nothing lost, paid twice or overspent", met=not violations),
        Aim("slowest", f"{AIM_S:.0f} s at most until the flow answers again", met=slowest <= AIM_S),
    ]
    emit("scale", figures | {"violations": violations, "rounds": rounds}, aims, as_json=as_json)


def _measure(
    broker: ApacheKafka, directory: Path, rounds: int, *, real_embedder: bool
) -> tuple[dict[str, object], dict[str, int]]:
    specs = [TopicSpec(topic.name, PARTITIONS, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
    create_topics(broker.bootstrap, specs)
    took: dict[str, list[float]] = {}
    violations: dict[str, int] = {}
    jobs = kills = 0
    for number in range(rounds):
        for slices in (False, True):
            scene = Scene(broker.bootstrap, directory / f"{number}-{slices}", PlainClient(broker.bootstrap))
            scene.directory.mkdir()
            with ModelServer(scene.directory / "calls", latency_s=LATENCY_S) as llm:
                variables = shared(scene, llm) | ({"VICTIM_EMBEDDER": "real"} if real_embedder else {})
                with Load(scene) as load, Answers(broker.bootstrap) as answers:
                    trial = Trial(variables, answers, load)
                    if slices:
                        trial.killed_slice()
                    else:
                        trial.rescaled([1, 1, 3, 2, 1])
                        trial.killed(1)
                        trial.killed(3)
                        load.end()
                        with cluster(1, variables) as members:
                            wait_for("all answers", lambda: load.jobs_left(answers.at) == 0, 120.0)  # now
                            _ended_well(members, all_of_them=True)
                for name, seconds in trial.took.items():
                    took.setdefault(name, []).extend(seconds)
                for name, count in _judged(scene, load, llm, trial.kills).items():
                    violations[name] = violations.get(name, 0) + count
                jobs, kills = jobs + len(load.jobs), kills + len(trial.kills)
    figures: dict[str, object] = {name: round(median(seconds), 2) for name, seconds in sorted(took.items())}
    slowest = {f"{name}_max": round(max(seconds), 2) for name, seconds in sorted(took.items())}
    return figures | slowest | {"jobs": jobs, "kills": kills}, violations


def _judged(scene: Scene, load: Load, llm: ModelServer, kills: Sequence[Kill]) -> dict[str, int]:
    """What must not be: by name, if there is any."""
    results = scene.results()
    found = {
        "lost": sum(job_id not in results for job_id in load.jobs),
        "two_results": sum(len(results.get(job_id, ())) > 1 for job_id in load.jobs),
        "paid_twice": len(called_again(llm, kills)),
        "overspent": max(load.most_spent() - LIMIT, 0),
    }
    return {name: count for name, count in found.items() if count}
