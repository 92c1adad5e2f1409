"""What a flow does when one of its parts fails as parts do: told by the topics, the ledger and the server's record."""

import os
import resource
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names, not marked as exported
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.topics import TopicSpec, create_topics
from connectors.ledger.sql import HEARTBEAT_S, LEASE_S
from schemas.errors import Fatal
from schemas.topics import dead_letter_topics
from tests.chaos.harness import ChaosRun, Plan, Victim
from tests.chaos.parts import CAPACITY, DEAD_LETTERS, PARTITIONS, REQUESTS, Flows, ModelServer, Scene
from tests.headrace_process import Payload
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import wait_for
from tests.postgres_server import PostgresServer, missing_server

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]  # deadlines of each wait are shorter, and say what failed


def request(job_id: str) -> Payload:
    return {"job_id": job_id, "kind": "generate", "prompt": f"What is {job_id}?"}


def metric(port: int, name: str) -> float:
    """The value of a metric, by its whole name with labels; -1 if there is none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), -1.0)


LLM_CIRCUIT = 'headrace_circuit_state{dependency="llm"}'


@pytest.mark.parametrize(
    "outage", ["frozen", pytest.param("503", marks=pytest.mark.slow), pytest.param("refused", marks=pytest.mark.slow)]
)
def test_jobs_wait_for_a_model_that_is_out_whatever_its_health_says_and_poison_does_not(
    scene: Scene, free_port: int, outage: str
) -> None:
    settings = {"HEADRACE_INFER_TIMEOUT_S": "1", "HEADRACE_METRICS_PORT": str(free_port)}
    with ModelServer(scene.directory / "calls") as llm, scene.flows(llm, **settings) as flows:
        flows.running()
        first = scene.submit(1)
        scene.wait_for_results(first)  # it consumes: the outage is not over before that
        if outage == "refused":
            llm.put("outage", seconds=4)
        else:
            llm.put("plan", fault_share=1.0, faults=["hang" if outage == "frozen" else outage])
        jobs = scene.submit(30)
        poison = scene.submit(1, "FAULT:400")
        wait_for("the circuit opens", lambda: flows.logged("circuit opened", dependency="llm"))
        wait_for("the metric shows it", lambda: metric(free_port, LLM_CIRCUIT) >= 1)
        if outage != "refused":
            assert llm.health() == "ok"
            before = len(llm.all_calls())
            wait_for("three probes", lambda: len(llm.all_calls()) >= before + 3)
            assert scene.results().keys() == set(first)
            llm.put("plan", fault_share=0.0)
        results = scene.wait_for_results(jobs)
        wait_for("the dead letter", scene.letters)
        wait_for("the metric shows the end", lambda: metric(free_port, LLM_CIRCUIT) == 0)
        assert flows.terminate() == 0
    assert [letter["job_id"] for letter in scene.letters()] == poison
    assert {job_id: len(found) for job_id, found in results.items()} == dict.fromkeys([*first, *jobs], 1)
    assert llm.called_twice() == set()


@contextmanager
def dead_letters_refused(bootstrap: str, why: str) -> Iterator[None]:
    """The topic takes no dead letter inside, and is as before after it."""
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def limit(size_bytes: int) -> None:
        entry = ConfigEntry("max.message.bytes", str(size_bytes), incremental_operation=AlterConfigOpType.SET)
        changed = ConfigResource(ResourceType.TOPIC, DEAD_LETTERS, incremental_configs=[entry])
        for done in admin.incremental_alter_configs([changed]).values():
            done.result(30)

    (topic,) = (topic for topic in dead_letter_topics() if topic.name == DEAD_LETTERS)
    if why == "too large":
        limit(100)
    else:
        admin.delete_topics([DEAD_LETTERS])[DEAD_LETTERS].result(30)
        wait_for("the topic is gone", lambda: DEAD_LETTERS not in admin.list_topics(timeout=10).topics)
    try:
        yield
    finally:
        if why == "too large":
            limit(1_000_000)
        else:
            create_topics(bootstrap, [TopicSpec(DEAD_LETTERS, PARTITIONS, topic.config)])


@pytest.mark.parametrize(
    ("refusal", "way_out"),
    [
        ("too large", "raise the topic's max.message.bytes"),
        pytest.param("no topic", "create it: headrace topics create", marks=pytest.mark.slow),  # 10 s until it is sure
    ],
)
def test_where_dead_letters_are_refused_the_flow_stops_before_the_message_and_goes_on_after_the_repair(
    scene: Scene, refusal: str, way_out: str
) -> None:
    one, two, three, four = (f"{scene.prefix}-{n}" for n in range(4))
    with ModelServer(scene.directory / "calls") as llm:
        with scene.flows(llm) as flows:
            flows.running()
            scene.submit_in_order(request(one))
            scene.wait_for_results([one])
            with dead_letters_refused(scene.bootstrap, refusal):
                malformed = f'{{"job_id": "{two}", '.encode()
                _, poison, _ = scene.submit_in_order(request(three), malformed, request(four))
                assert flows.ended() == 1, flows.text
        assert f"topic {DEAD_LETTERS}: " in flows.last_words
        assert way_out in flows.last_words
        assert scene.committed() <= poison
        with scene.flows(llm) as flows:
            flows.running()
            wait_for("the dead letter", scene.letters)
            results = scene.wait_for_results([one, three, four])
            wait_for("the group is past it", lambda: scene.committed() > poison)
            assert flows.terminate() == 0
    assert {letter["offset"] for letter in scene.letters()} == {poison}
    assert {len(found) for found in results.values()} == {1}
    assert llm.called_twice() <= scene.ambiguous([one, three, four])  # calls that the stop interrupted


def test_a_position_that_was_deleted_stops_the_flow_with_one_line_and_nothing_is_skipped(scene: Scene) -> None:
    with ModelServer(scene.directory / "calls") as llm:
        with scene.flows(llm) as flows:
            flows.running()
            scene.submit_in_order(request(f"{scene.prefix}-1"))
            scene.wait_for_results([f"{scene.prefix}-1"])
            assert flows.terminate() == 0
        before = scene.committed()
        offsets = scene.submit_in_order(*(request(f"{scene.prefix}-{n}") for n in (2, 3, 4)))
        admin = AdminClient({"bootstrap.servers": scene.bootstrap})
        for done in admin.delete_records([TopicPartition(REQUESTS, 0, offsets[2])]).values():
            done.result(30)
        with scene.flows(llm) as flows:
            assert flows.ended() == 1, flows.text
        where = f"{REQUESTS}/0: offset {offsets[0]}, where the flow must resume, is not in the topic"
        assert where in flows.last_words
        assert scene.committed() == before
        assert scene.results().keys() == {f"{scene.prefix}-1"}
        (scene.directory / "a" / "recovery" / "answer").rename(scene.directory / "aside")  # as the line says
        with scene.flows(llm) as flows:
            flows.running()
            scene.wait_for_results([f"{scene.prefix}-4"])
            assert flows.terminate() == 0
    assert scene.results().keys() == {f"{scene.prefix}-1", f"{scene.prefix}-4"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, so that it can be filled; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}; the test with a file size limit runs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> None:
    """Take all the space that is left."""
    with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def restart_after(
    scene: Scene, settings: Mapping[str, str], stop: Callable[[Flows], None], between: Callable[[ModelServer], None]
) -> str:
    """A load during which `stop` takes the disk away; what the flow said last. Then all must end."""
    with ModelServer(scene.directory / "calls", latency_s=(0.2, 0.6)) as llm:
        with scene.flows(llm, **settings) as flows:
            flows.running()
            jobs = scene.submit(150)
            scene.wait_for_results(jobs[:1])
            stop(flows)
            jobs += scene.submit(300)  # a file reuses its space before it must grow: there must be work left
            assert flows.ended() == 1, flows.text
        between(llm)
        with scene.flows(llm, **settings) as again:
            again.running()
            results = scene.wait_for_results(jobs)
            assert again.terminate() == 0
    assert {len(found) for found in results.values()} == {1}
    assert scene.letters() == []
    ambiguous = scene.ambiguous(jobs, settings.get("HEADRACE_LEDGER"))
    assert llm.called_twice() <= ambiguous
    assert len(ambiguous) <= CAPACITY  # as many as were in flight
    return flows.last_words


@pytest.mark.parametrize(
    ("variable", "name", "workers"),
    [
        pytest.param("LEDGER", "ledger.sqlite", "1", marks=pytest.mark.slow),
        ("RECOVERY_DIR", "recovery", "2"),
    ],
)
def test_a_full_disk_stops_the_flow_with_one_line_and_with_space_all_jobs_complete(
    scene: Scene, small_disk: Path, variable: str, name: str, workers: str
) -> None:
    settings = {f"HEADRACE_{variable}": str(small_disk / name), "HEADRACE_WORKERS": workers}
    too_early: list[str] = []

    def start_too_early_then_make_space(llm: ModelServer) -> None:
        fill(small_disk)  # what closed files have left
        with scene.flows(llm, **settings) as flows:
            assert flows.ended() == 1, flows.text
        too_early.append(flows.last_words)
        (small_disk / "ballast").unlink()

    said = restart_after(scene, settings, lambda _: fill(small_disk), start_too_early_then_make_space)
    assert str(small_disk / name) in said
    assert "database or disk is full; free some space, then start again" in said
    (words,) = too_early
    assert str(small_disk / name) in words
    assert "then start again" in words


def test_a_new_recovery_directory_on_a_full_disk_is_refused_with_a_way_out(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(Fatal, match="is full; free some space"), RecoveryDirectory(small_disk / "answer"):
        pass


@pytest.mark.slow
def test_files_that_may_not_grow_stop_the_flow_at_once_with_one_line_and_lose_nothing(scene: Scene) -> None:
    def limit(flows: Flows) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(flows.process.pid, resource.RLIMIT_FSIZE, (1, most))

    said = restart_after(scene, {}, limit, lambda _: None)
    assert str(scene.directory / "a") in said
    assert "disk I/O error" in said


class Rescaled(ChaosRun):
    """A run in which every process has another number of workers than the one before."""

    def __init__(self, *arguments: object, workers: Sequence[int], **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._workers = cycle(workers)

    def _start(self, point: str) -> Victim:
        self._environment["HEADRACE_WORKERS"] = str(next(self._workers))
        return super()._start(point)


@pytest.mark.slow
def test_nothing_is_lost_or_paid_twice_when_each_restart_after_a_kill_has_another_number_of_workers(
    scene: Scene, kafka: ApacheKafka
) -> None:
    points = ("after-claim", "random", "during-snapshot", "after-ledger", "random")
    plan = Plan(jobs=200, documents=20, kills=5, seed=4, broker_restarts=0, outage_s=0.0, points=points)
    report = Rescaled(plan, kafka, scene.directory, print, workers=(1, 3, 2)).run()
    assert report.verdict.violations == {}, report.verdict.examples
    assert sum(report.kills_by_point.values()) == plan.kills


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL, shared by the scenarios; one that stops it starts it again."""
    missing = missing_server()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with PostgresServer() as server:
        yield server


@pytest.mark.parametrize("trouble", [pytest.param("stopped", marks=pytest.mark.slow), "frozen"])
def test_while_the_ledgers_postgres_is_out_jobs_wait_and_none_is_lost_paid_twice_or_dead_lettered(
    scene: Scene, postgres: PostgresServer, trouble: str
) -> None:
    settings = {"HEADRACE_LEDGER": postgres.conninfo}
    with (
        ModelServer(scene.directory / "calls", latency_s=(0.2, 1.0)) as llm,
        scene.flows(llm, **settings) as flows,
    ):
        flows.running()
        jobs = scene.submit(200)
        scene.wait_for_results(jobs[:1])
        (postgres.stop if trouble == "stopped" else postgres.freeze)()
        try:
            wait_for("the outage is noticed", lambda: flows.logged("circuit opened", dependency="ledger"))
            answered = sum(call.ended_at is not None for call in llm.all_calls())
            assert answered < len(jobs), "all was done before the outage: it proves nothing"
        finally:
            (postgres.start if trouble == "stopped" else postgres.thaw)()
        results = scene.wait_for_results(jobs)
        assert flows.terminate() == 0
    assert {job_id: len(found) for job_id, found in results.items()} == dict.fromkeys(jobs, 1)
    assert {job_id: len(calls) for job_id, calls in llm.calls().items()} == dict.fromkeys(jobs, 1)
    assert scene.letters() == []
    assert scene.ambiguous(jobs, postgres.conninfo) == set()


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["sqlite", "postgres"])
def test_a_process_that_wakes_up_after_its_claims_were_taken_over_changes_nothing_and_works_on(
    scene: Scene, request: pytest.FixtureRequest, shared: str
) -> None:
    ledger = str(scene.directory / "ledger.sqlite")
    if shared == "postgres":
        ledger = request.getfixturevalue("postgres").conninfo
    settings = {"HEADRACE_LEDGER": ledger}
    with (
        ModelServer(scene.directory / "calls", latency_s=(3.0, 4.0)) as llm,
        scene.flows(llm, process="zombie", **settings) as zombie,
    ):
        zombie.running()
        jobs = scene.submit(5)
        wait_for("all calls are in flight", lambda: len(llm.all_calls()) == len(jobs))
        zombie.send(signal.SIGSTOP)
        assert not scene.results()
        stopped_at = time.monotonic()
        with scene.flows(llm, process="heir", **settings) as heir:
            heir.running()
            taken_over = scene.wait_for_results(jobs)
            assert time.monotonic() - stopped_at > LEASE_S - HEARTBEAT_S
            assert scene.ambiguous(jobs, ledger) == set(jobs)
            zombie.send(signal.SIGCONT)
            more = scene.submit(5)
            scene.wait_for_results(more)
            for process, flows in (("zombie", zombie), ("heir", heir)):
                wait_for(f"the {process} has ended all", partial(scene.has_no_lag, process))
                assert flows.terminate() == 0, flows.text
    results = scene.results()
    assert {job_id: results[job_id] for job_id in jobs} == taken_over
    assert {len(found) for found in results.values()} == {1}
    assert {job_id: len(calls) for job_id, calls in llm.calls().items()} == dict.fromkeys(jobs, 2) | dict.fromkeys(
        more, 1
    )
    assert scene.letters() == []
    assert {job_id for job_id in (*jobs, *more) if b"call 1" not in b"".join(results[job_id])} == set(jobs)
