"""Flows in several processes, on Apache Kafka: rescaled, updated and killed under load."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import pytest

from schemas.usage import TokensUsed
from tests.chaos.members import LIMIT, Load, called_again, cluster, kill, shared, slice_of
from tests.chaos.oracle import Kill
from tests.chaos.parts import END_S, Flows, ModelServer, Scene
from tests.headrace_process import headrace
from tests.kafka.apache_kafka import free_port
from tests.kafka.client import committed, wait_for, write

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def answered(scene: Scene, job_ids: Sequence[str] | None = None) -> int:
    results = scene.results()
    return len(results) if job_ids is None else sum(job_id in results for job_id in job_ids)


def more_answers(scene: Scene, more: int = 12) -> None:
    """Wait until so many more jobs are done: the flow is consuming."""
    enough = answered(scene) + more
    wait_for(f"{more} more answers", lambda: answered(scene) >= enough, 120.0)


def check(scene: Scene, load: Load, llm: ModelServer, kills: Sequence[Kill] = ()) -> None:
    """Every job has one result, no budget was overspent, and only what a kill cut off was called again."""
    results = scene.wait_for_results(load.jobs)
    assert {job_id: len(results[job_id]) for job_id in load.jobs} == dict.fromkeys(load.jobs, 1)
    assert scene.letters() == []
    assert called_again(llm, kills) == set()
    assert LIMIT // 4 < load.most_spent() <= LIMIT  # a budget that was never near its edge would prove nothing


@pytest.mark.slow
@pytest.mark.parametrize("own_volumes", [False, True], ids=["shared-directory", "own-volumes"])
def test_a_flow_goes_from_one_process_to_three_and_to_two_under_load_and_budgets_stay_exact(
    scene: Scene, *, own_volumes: bool
) -> None:
    """Each time one of them is asked to stop, as an update does: all drain, and end well."""
    with ModelServer(scene.directory / "calls", latency_s=(0.02, 0.2)) as llm:
        variables = shared(scene, llm)
        with Load(scene) as load:
            for size in (1, 3, 2):
                with cluster(size, variables, own_volumes=own_volumes) as members:
                    more_answers(scene)
                    if size == 2:
                        load.end()
                        scene.wait_for_results(load.jobs)
                    members[-1].send(signal.SIGTERM)
                    assert [each.ended() for each in members] == [0] * size, members[0].text
        check(scene, load, llm)


@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_when_one_process_is_killed_all_resume_with_nothing_lost_and_the_others_say_why_they_ended(
    scene: Scene, victim: int
) -> None:
    kills: list[Kill] = []
    with ModelServer(scene.directory / "calls", latency_s=(0.02, 0.2)) as llm:
        variables = shared(scene, llm)
        with Load(scene) as load:
            with cluster(3, variables) as members:
                more_answers(scene)
                kills.append(kill(members[victim], members))
                assert [each.ended() for each in members] == [-9 if n == victim else 1 for n in range(3)]
                lost = [each.last_words for n, each in enumerate(members) if n != victim]
                assert all("lost another one of its cluster" in words for words in lost)
            with cluster(3, variables) as members:
                more_answers(scene)
                load.end()
                scene.wait_for_results(load.jobs)
                members[0].send(signal.SIGTERM)
                assert [each.ended() for each in members] == [0, 0, 0]
        check(scene, load, llm, kills)


def test_a_slice_that_is_updated_or_killed_leaves_its_neighbour_running_and_budgets_stay_exact(scene: Scene) -> None:
    kills: list[Kill] = []
    with ModelServer(scene.directory / "calls", latency_s=(0.02, 0.2)) as llm:
        variables = shared(scene, llm)
        with Load(scene) as load, slice_of(0, 2, variables) as steady:
            steady.running()
            for update in (True, False):  # first it is asked to stop, as by a new release, then it is killed
                with slice_of(1, 2, variables) as other:
                    other.running()
                    more_answers(scene)
                    if update:
                        assert other.terminate() == 0
                    else:
                        kills.append(kill(other, [other]))
                    more_answers(scene, 3)  # by the neighbour
            with slice_of(1, 2, variables) as other:
                other.running()
                load.end()
                scene.wait_for_results(load.jobs)
                assert other.terminate() == 0
            assert steady.terminate() == 0
        check(scene, load, llm, kills)


def test_what_nobody_can_read_is_one_dead_letter_however_many_slices_look_at_it(scene: Scene) -> None:
    with ModelServer(scene.directory / "calls") as llm:
        variables = shared(scene, llm)
        with slice_of(0, 2, variables) as one, slice_of(1, 2, variables) as other:
            for each in (one, other):
                each.running()
            scene.submit_in_order(b"no event")
            (job_id,) = scene.submit(1)
            scene.wait_for_results([job_id])
            wait_for("its dead letter", scene.letters)
            for number, each in enumerate((one, other)):  # both have been past it
                group = f"{scene.group_prefix()}.answer.{number}"
                wait_for("a commit", partial(_has_passed, scene, group))
                assert each.terminate() == 0
        assert len(scene.letters()) == 1


def _has_passed(scene: Scene, group: str) -> bool:
    return sum(committed(scene.bootstrap, group, "requests.submitted").values()) >= 2


def test_a_slice_refuses_the_state_of_another_one(scene: Scene) -> None:
    with ModelServer(scene.directory / "calls") as llm:
        variables = shared(scene, llm)
        with slice_of(1, 2, variables) as first:
            assert first.running().terminate() == 0
        own = {"HEADRACE_RECOVERY_DIR": f"{variables['HEADRACE_DATA_DIR']}/volume-1"}
        with Flows("answer", **variables, **own, HEADRACE_SLICES="3", HEADRACE_SLICE="1") as refused:
            assert refused.ended() == 1
            assert "slice 1 of 2 by tenant, not of slice 1 of 3 by tenant" in refused.last_words
            assert "HEADRACE_SLICES" in refused.last_words


class Supervised:
    """`headrace run usage --processes 3`, or otherwise, while entered."""

    def __init__(self, scene: Scene, *options: str, **variables: str) -> None:
        self.command = [sys.executable, "-m", "cli.main", "run", "usage", *(options or ("--processes", "3"))]
        self._environment = os.environ | {
            "HEADRACE_KAFKA_BOOTSTRAP": scene.bootstrap,
            "HEADRACE_DATA_DIR": str(scene.directory / "data"),
            "HEADRACE_GROUP_PREFIX": scene.group_prefix(),
            **variables,
        }
        self.log = scene.directory / "supervised.log"

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self._environment, stdout=log, stderr=log)
        return self

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    @property
    def pids(self) -> list[int]:
        """Of its processes."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # the others end with it
        self.process.wait(END_S)


def use(scene: Scene, tenant: str, calls: range) -> None:
    """Bills of so many calls, a token each."""
    bills = [
        TokensUsed(
            job_id=f"{tenant}-{n}", tenant=tenant, root_job_id="r", admission_id=f"{n}", model="m", prompt_tokens=1
        )
        for n in calls
    ]
    write(scene.bootstrap, "usage.tokens", [bill.encode() for bill in bills], key=tenant.encode())


def total(scene: Scene, tenant: str) -> object:
    done = headrace("usage", tenant, "--window", "hour", "--json", "--bootstrap", scene.bootstrap)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["totals"]


@pytest.mark.slow
def test_a_cluster_on_one_machine_is_started_again_when_a_process_is_killed_and_counts_each_call_once(
    scene: Scene,
) -> None:
    tenants = [f"t-{uuid4().hex[:6]}" for _ in range(4)]

    def counted(calls: int) -> bool:
        return all(total(scene, tenant) == {"calls": calls, "tokens": calls} for tenant in tenants)

    with Supervised(scene) as supervised:
        wait_for("a start", partial(supervised.said, "running: usage in 3 processes"))
        for tenant in tenants:
            use(scene, tenant, range(100))
        wait_for("a hundred calls", partial(counted, 100))
        first = supervised.pids
        assert len(first) == 3
        os.kill(first[1], signal.SIGKILL)
        wait_for("the restart", partial(supervised.said, "a process of the cluster was killed; all start again"))
        for tenant in tenants:
            use(scene, tenant, range(50, 200))  # some come twice
        wait_for("two hundred calls", partial(counted, 200))
        assert not set(first) & set(supervised.pids)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.process.wait(END_S) == 0, supervised.log.read_text()
    assert not any(Path(f"/proc/{pid}").exists() for pid in first)


def test_a_cluster_that_fails_for_a_reason_ends_and_says_it_once_instead_of_starting_again(scene: Scene) -> None:
    with Supervised(scene, HEADRACE_RECOVERY_DIR="/proc/nowhere") as supervised:
        assert supervised.process.wait(END_S) == 1
    said = supervised.log.read_text()
    assert "/proc/nowhere" in said
    assert "start again" not in said
    assert "of usage ended with exit code 1" in said.splitlines()[-1]


def test_a_cluster_that_is_slow_to_connect_says_when_it_runs_and_ends_well_whenever_it_is_asked_to(
    scene: Scene,
) -> None:
    """Bytewax says on standard output that it tries again; before they handle signals, SIGTERM kills processes."""
    process = scene.directory / "process"
    retries = "worker 1:\\terror connecting to worker 0: Connection refused (os error 111); retrying"
    process.write_text(f"#!/bin/sh\nprintf '{retries}\\nrunning: usage\\n'\nexec sleep 600\n")
    process.chmod(0o700)
    started = f"import sys; sys.executable = {str(process)!r}; from cli.main import main; main()"
    supervised = Supervised(scene)
    supervised.command = [sys.executable, "-c", started, "run", "usage", "--processes", "3"]
    with supervised:
        wait_for("a start", partial(supervised.said, "running: usage in 3 processes"))
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.process.wait(END_S) == 0, supervised.log.read_text()


def test_a_process_whose_others_are_missing_is_not_ready_says_where_it_is_and_ends_well_when_it_is_asked_to(
    scene: Scene,
) -> None:
    nobody = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    port = free_port()
    variables = {"HEADRACE_CLUSTER": nobody, "HEADRACE_DRAIN_S": "1", "HEADRACE_METRICS_PORT": str(port)}
    with Supervised(scene, "--bootstrap", scene.bootstrap, **variables) as alone:
        wait_for("its flow", partial(alone.said, "flow started"))
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30)
        alone.process.send_signal(signal.SIGUSR1)
        wait_for("its threads", partial(alone.said, "in _wait_for_others"))
        alone.process.send_signal(signal.SIGTERM)
        assert alone.process.wait(END_S) == 0, alone.log.read_text()
    assert alone.said("before it began")


def test_an_address_of_a_cluster_that_is_taken_is_one_line_with_the_way_out(scene: Scene) -> None:
    taken = {"HEADRACE_CLUSTER": f"{scene.bootstrap},127.0.0.1:{free_port()}"}
    with Supervised(scene, "--bootstrap", scene.bootstrap, **taken) as refused:
        assert refused.process.wait(END_S) == 1
    last_words = refused.log.read_text().splitlines()[-1]
    assert f"process 0 of the cluster cannot listen at {scene.bootstrap}: Address already in use" in last_words


@pytest.mark.parametrize(
    ("arguments", "variables", "reason"),
    [
        (["ingest", "answer", "--processes", "2"], {}, "a cluster runs one flow"),
        (["answer", "--processes", "2"], {}, "HEADRACE_QDRANT_URL"),
        (["webhooks", "--processes", "2"], {}, "HEADRACE_SLICES"),
        (["usage", "--processes", "2"], {"HEADRACE_CLUSTER": "a:1,b:1"}, "HEADRACE_CLUSTER"),
        (["usage", "--processes", "2"], {"HEADRACE_SLICES": "2"}, "HEADRACE_SLICES"),
        (["usage"], {"HEADRACE_CLUSTER": "a:1,b:1", "HEADRACE_CLUSTER_PROCESS": "2"}, "HEADRACE_CLUSTER_PROCESS=2"),
        (["usage"], {"HEADRACE_CLUSTER": "a:1,a:1"}, "listed twice"),
        (["usage"], {"HEADRACE_CLUSTER": "a:1,b"}, "HEADRACE_CLUSTER='a:1,b': b is no address; each is host:port"),
        (["usage"], {"HEADRACE_CLUSTER": "a:1,b:65536"}, "b:65536 is no address"),
        (["usage"], {"HEADRACE_SLICES": "2", "HEADRACE_SLICE": "2"}, "HEADRACE_SLICE=2"),
    ],
)
def test_what_can_be_no_cluster_is_a_usage_error_with_the_way_out(
    arguments: list[str], variables: dict[str, str], reason: str
) -> None:
    refused = headrace("run", *arguments, HEADRACE_KAFKA_BOOTSTRAP="127.0.0.1:1", **variables)
    assert refused.returncode == 2
    assert reason in refused.stderr.strip().splitlines()[-1]
