"""The recovery directory."""

import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, cluster_main

from connectors.kafka.recovery import RecoveryDirectory
from schemas.errors import Fatal


def run(recovery: RecoveryDirectory, entries: list[int | TestingSource.EOF]) -> list[int]:
    """One run of a flow that reads `entries` from where the last one stopped."""
    found: list[int] = []
    flow = Dataflow("count")
    op.output("write", op.input("read", flow, TestingSource(entries)), TestingSink(found))
    cluster_main(flow, [], 0, epoch_interval=timedelta(0), recovery_config=recovery.config())
    return found


def test_a_flow_resumes_from_a_directory_that_was_left_and_entered_again(tmp_path: Path) -> None:
    entries: list[int | TestingSource.EOF] = [1, 2, TestingSource.EOF(), 3]
    with RecoveryDirectory(tmp_path / "recovery") as recovery:
        assert run(recovery, entries) == [1, 2]
    with RecoveryDirectory(tmp_path / "recovery") as recovery:
        assert run(recovery, entries) == [3]


def counted(directory: Path, entries: list[str | TestingSource.EOF | TestingSource.ABORT]) -> list[tuple[str, int]]:
    """One process: how often each word of `entries` has been read so far, by what the last one remembered."""
    found: list[tuple[str, int]] = []
    flow = Dataflow("words")
    keyed = op.key_on("key", op.input("read", flow, TestingSource(entries)), lambda word: word)
    counts = op.stateful_map("count", keyed, lambda count, _word: ((count or 0) + 1, (count or 0) + 1))
    op.output("write", counts, TestingSink(found))
    with RecoveryDirectory(directory) as recovery:
        cluster_main(flow, [], 0, epoch_interval=timedelta(0), recovery_config=recovery.config())
    return found


def leave_unfinished(directory: Path, word: str, count: int) -> None:
    """As a process does that has written an epoch's snapshots and is killed before it has written that it is over."""
    for file in (directory / "snapshots").glob("part-*.sqlite3"):
        with closing(sqlite3.connect(file)) as at, at:
            rows = at.execute("SELECT step_id, max(snap_epoch) FROM snaps WHERE state_key = ?", (word,)).fetchone()
            if rows[0] is not None:
                row = (rows[0], word, rows[1] + 2, pickle.dumps(count))
                at.execute("INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)", row)


def test_what_a_killed_process_wrote_of_an_epoch_that_it_never_finished_is_forgotten(tmp_path: Path) -> None:
    """Else the second process after it takes that for what the first one after it knew."""
    entries: list[str | TestingSource.EOF | TestingSource.ABORT] = ["a", "b", TestingSource.EOF()]
    assert counted(tmp_path, entries) == [("a", 1), ("b", 1)]
    leave_unfinished(tmp_path, "a", 99)
    entries += ["b"] * 5 + [TestingSource.ABORT()]  # killed as well, after a few epochs without that word
    assert counted(tmp_path, entries)[-1] == ("b", 6)
    entries += ["a"]
    assert counted(tmp_path, entries)[-1] == ("a", 2)


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    with RecoveryDirectory(tmp_path / "recovery"):
        assert (tmp_path / "recovery").stat().st_mode & 0o777 == 0o700


def test_a_second_opener_is_told_what_is_in_the_way_and_the_way_out(tmp_path: Path) -> None:
    with (
        RecoveryDirectory(tmp_path / "recovery"),
        pytest.raises(Fatal, match=r"/recovery is in use .* give this one a directory of its own"),
        RecoveryDirectory(tmp_path / "recovery"),
    ):
        pass


def test_kill_minus_9_releases_the_lock_even_while_a_child_lives_on(tmp_path: Path) -> None:
    program = f"""if True:
        import subprocess, sys
        from pathlib import Path
        from connectors.kafka.recovery import RecoveryDirectory
        with RecoveryDirectory(Path({str(tmp_path / "recovery")!r})):
            child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=0)
            print(child.pid, flush=True)
            child.wait()
    """
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:  # closing its standard input ends the child
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) > 0
        with pytest.raises(Fatal, match="in use"), RecoveryDirectory(tmp_path / "recovery"):
            pass
        holder.kill()
        holder.wait()
        with RecoveryDirectory(tmp_path / "recovery"):
            pass


def test_a_directory_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recovery").mkdir()
    (tmp_path / "recovery").chmod(0o750)
    with pytest.raises(Fatal, match=r"mode 0750.*chmod 700"), RecoveryDirectory(tmp_path / "recovery"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recovery").mkdir(mode=0o700)
    os.chown(tmp_path / "recovery", 12345, -1)
    with pytest.raises(Fatal, match="belongs to user 12345"), RecoveryDirectory(tmp_path / "recovery"):
        pass


def test_a_crash_during_creation_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    half = tmp_path / "recovery" / "snapshots.new"
    half.mkdir(parents=True)
    (tmp_path / "recovery").chmod(0o700)
    (half / "part-0.sqlite3").write_bytes(b"half")
    with RecoveryDirectory(tmp_path / "recovery") as recovery:
        assert run(recovery, [1, 2]) == [1, 2]


def test_each_process_of_a_cluster_has_its_place_in_a_shared_directory_once(tmp_path: Path) -> None:
    path = tmp_path / "recovery"
    with RecoveryDirectory(path, process=1) as second, RecoveryDirectory(path) as first:
        assert first.identity != second.identity
        with pytest.raises(Fatal, match="in use by another process"), RecoveryDirectory(path, process=1):
            pass
        with pytest.raises(Fatal, match="in use by another process"), RecoveryDirectory(path):
            pass
        identities = first.identity, second.identity
    with RecoveryDirectory(path) as first, RecoveryDirectory(path, process=1) as second:
        assert (first.identity, second.identity) == identities


def test_only_the_first_process_makes_the_partitions_whoever_comes_first(tmp_path: Path) -> None:
    with RecoveryDirectory(tmp_path / "recovery", process=1):
        assert not list((tmp_path / "recovery").rglob("*.sqlite3"))
        with RecoveryDirectory(tmp_path / "recovery") as recovery:
            assert run(recovery, [1, 2]) == [1, 2]


def test_the_state_of_one_slice_is_refused_for_another_and_for_the_whole_flow(tmp_path: Path) -> None:
    with RecoveryDirectory(tmp_path / "recovery", of="slice 1 of 2 by tenant") as recovery:
        run(recovery, [1])
    for other in ("slice 1 of 3 by tenant", ""):
        with (
            pytest.raises(Fatal, match=r"holds the state of slice 1 of 2 by tenant, not of .*HEADRACE_SLICES"),
            RecoveryDirectory(tmp_path / "recovery", of=other),
        ):
            pass
    with RecoveryDirectory(tmp_path / "recovery", of="slice 1 of 2 by tenant") as recovery:
        assert run(recovery, [1, 2]) == [2]
