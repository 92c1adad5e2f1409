"""Recovery state that is older than what was done since, or gone: what a restore from a backup has to bear."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.chaos.members import LIMIT, Load, called_again
from tests.chaos.parts import ModelServer, Scene
from tests.kafka.client import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


@pytest.mark.parametrize("kept", ["backup", pytest.param("nothing", marks=pytest.mark.slow)])
def test_a_flow_that_goes_on_from_a_backup_or_from_nothing_pays_for_nothing_twice_and_loses_nothing(
    scene: Scene, kept: str
) -> None:
    """The ledger and the topics know what the recovery directory does not."""
    recovery, backup = scene.directory / "a" / "recovery", scene.directory / "backup"
    with ModelServer(scene.directory / "calls", latency_s=(0.02, 0.2)) as llm, Load(scene) as load:
        with scene.flows(llm) as flows:
            flows.running()
            wait_for("answers", lambda: len(scene.results()) >= 20)
            assert flows.terminate() == 0
        if kept == "backup":
            shutil.copytree(recovery, backup)
        with scene.flows(llm) as flows:
            flows.running()
            wait_for("more answers", lambda: len(scene.results()) >= 60)
            flows.send(signal.SIGTERM)
            assert flows.ended() == 0
        _restore(recovery, backup)
        load.end()
        with scene.flows(llm) as flows:
            flows.running()
            results = scene.wait_for_results(load.jobs)
            assert flows.terminate() == 0
        assert {job_id: len(results[job_id]) for job_id in load.jobs} == dict.fromkeys(load.jobs, 1)
        assert called_again(llm, []) == set()
        assert load.most_spent() <= LIMIT
        assert scene.letters() == []


def _restore(recovery: Path, backup: Path) -> None:
    shutil.rmtree(recovery)
    if backup.exists():
        shutil.copytree(backup, recovery)
        recovery.chmod(0o700)
