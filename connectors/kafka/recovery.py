"""The directory that a flow resumes from, opened by one process at a time, or by the processes of one cluster.

Bytewax itself fences nothing: two processes on one directory both run, and both do all the work. And its snapshots are
pickle, which runs code when read, so nobody else may be able to write them.

The state of a flow lies in partitions, SQLite files, and which process writes one is Bytewax's to say: any that finds
it. Where the processes of a cluster share the directory, the partitions spread over them. Where each has a directory of
its own, process 0 has them all; so either way any number of processes may go on with what another number has left, as
long as process 0 finds its directory.
"""

import fcntl
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from bytewax.recovery import RecoveryConfig, init_db_dir
from prometheus_client import Gauge

from schemas.errors import Fatal

SNAPSHOT_BYTES = Gauge(
    "headrace_snapshot_bytes",
    "Size of the recovery state on disk, of which a restart reads all; processes may share it.",
    ["flow"],
)

_SQLITE_FAILURE = re.compile(r'SqliteFailure\(Error \{ code: (?P<code>\w+).*?Some\("(?P<reason>[^"]*)"\)', re.DOTALL)


class RecoveryDirectory:
    """Holds a flow's snapshots while entered; created on first use, private to this user, locked against others.

    The lock is the kernel's: it ends with the process, kill -9 included. `partitions` counts only for a new directory;
    the state of a flow is spread over that many SQLite files, and 16 keep restoring it quick. `flow` names it in
    metrics; by default the directory's name does. `process`: which one of a cluster this is; each has a lock of its
    own, so two clusters on one directory collide as two processes do. `of`: whose state it is, if not the whole flow's;
    it is written down, and another one is refused.

    Raises Fatal on entering if another process holds the directory, if others than its owner can reach it, or if the
    state in it is of another slice.
    """

    def __init__(
        self, path: Path, partitions: int = 16, flow: str | None = None, *, process: int = 0, of: str = ""
    ) -> None:
        self._path = path
        self._flow = flow or path.name
        self._partitions = partitions
        self._process = process
        self._of = of
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_private()
        self._lock = self._acquire()
        try:
            self._check_whose()
            self._initialize()
            self._forget_unfinished_epochs()
        except BaseException:
            self._release()
            raise
        SNAPSHOT_BYTES.labels(self._flow).set_function(self._size_bytes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lock is not None:
            SNAPSHOT_BYTES.remove(self._flow)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def config(self) -> RecoveryConfig:
        """What bytewax needs; only while entered."""
        if self._lock is None:
            raise RuntimeError(f"{self._path}: enter the recovery directory before use")
        return RecoveryConfig(str(self._store))

    def failure(self, error: BaseException) -> Fatal | None:
        """The error in words, if it is bytewax's own about its snapshots: a panic, which has no class to tell it by."""
        found = _SQLITE_FAILURE.search(str(error))
        if found is None:
            return None
        full = found["code"] == "DiskFull"
        way_out = "free some space" if full else "check it, and whether its disk is full or broken"
        return Fatal(f"recovery directory {self._path}: {found['reason']}; {way_out}, then start again")

    @property
    def identity(self) -> str:
        """An id as old as the directory. Whoever holds the lock is the only one to have it; only while entered."""
        if self._lock is None:
            raise RuntimeError(f"{self._path}: enter the recovery directory before use")
        file = self._own("identity")
        if not file.exists():
            unfinished = self._own("identity.new")
            unfinished.write_text(uuid4().hex)
            unfinished.rename(file)
        return file.read_text()

    @property
    def _store(self) -> Path:
        return self._path / "snapshots"

    def _own(self, name: str) -> Path:
        """A file of this process's."""
        return self._path / (f"{name}-{self._process}" if self._process else name)

    def _check_whose(self) -> None:
        """Refuse the state of another slice: it has read other messages, and knows other tenants."""
        file = self._path / "of"
        if not self._has_partitions():
            file.write_text(self._of)
        found = file.read_text() if file.exists() else ""  # a directory of before there were slices
        if found != self._of:
            raise Fatal(
                f"recovery directory {self._path} holds the state of {found or 'the whole flow'}, not of "
                f"{self._of or 'the whole flow'}: set HEADRACE_SLICE and HEADRACE_SLICES as before, or give this one a "
                "directory of its own"
            )

    def _has_partitions(self) -> bool:
        return any(self._store.glob("part-*.sqlite3"))

    def _size_bytes(self) -> float:
        total = 0
        for file in self._store.glob("*"):
            with suppress(FileNotFoundError):  # a write-ahead log may end at any time
                total += file.stat().st_size
        return total

    def _check_private(self) -> None:
        found = self._path.stat()
        if found.st_uid != os.geteuid():
            raise Fatal(
                f"recovery directory {self._path} belongs to user {found.st_uid}, not to {os.geteuid()}, who runs "
                "the flow; snapshots are executed when read: name a directory of your own"
            )
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise Fatal(
                f"recovery directory {self._path} has mode {mode:04o}, so others can reach it; snapshots are executed "
                f"when read: check that nobody wrote to it, then: chmod 700 {self._path}"
            )

    def _acquire(self) -> int:
        # Not inherited by programs that this process starts, so that none of them keeps the lock after its death.
        lock = os.open(self._own("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise Fatal(
                f"recovery directory {self._path} is in use by another process, and two would do all work twice; stop "
                "that process, or give this one a directory of its own"
            ) from error
        return lock

    def _initialize(self) -> None:
        if self._process:  # the first one makes them; where the directory is not shared, this one has none
            self._store.mkdir(mode=0o700, exist_ok=True)
            return
        if self._has_partitions():
            return
        unfinished = self._path / "snapshots.new"  # renamed when whole: a crash in between leaves no half of it
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        try:
            init_db_dir(unfinished, self._partitions)
        except BaseException as panic:  # noqa: BLE001  # pyo3's PanicException is no Exception
            raise self.failure(panic) or panic from None
        unfinished.rename(self._store)

    def _forget_unfinished_epochs(self) -> None:
        """Delete the snapshots of epochs that a killed process had begun and not finished.

        Bytewax (0.21.1) leaves them. The next process starts before those epochs; if it finishes them without coming by
        some key again and is killed too, the one after it would take that key's snapshot of the first process for its
        own: state of messages that have not been read yet, which were then lost as repeats. It was seen after nine
        kills within 14 s.
        """
        with ExitStack() as stack:
            try:
                partitions = [
                    stack.enter_context(closing(sqlite3.connect(file))) for file in self._store.glob("part-*.sqlite3")
                ]
                resume_epoch = _resume_epoch(partitions)
                for partition in partitions:
                    with partition:
                        partition.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (resume_epoch,))
            except sqlite3.Error as error:
                raise Fatal(
                    f"recovery directory {self._path}: {error}; check it, and whether its disk is full or broken, then "
                    "start again"
                ) from error


def _resume_epoch(partitions: Sequence[sqlite3.Connection]) -> int:
    """The epoch at which Bytewax will start, by its own rule: the least that all workers of the last execution closed.

    Where a worker has closed none, it counts from where that execution started. Facts are spread over the partitions.
    """
    executions = [row for at in partitions for row in at.execute("SELECT ex_num, worker_count, resume_epoch FROM exs")]
    if not executions:
        return 0
    last, workers, began = max(executions)
    frontiers = dict.fromkeys(range(workers), began)
    for at in partitions:
        for worker, frontier in at.execute(
            "SELECT worker_index, worker_frontier FROM fronts WHERE ex_num = ?", (last,)
        ):
            frontiers[worker] = max(frontiers.get(worker, began), frontier)
    return int(min(frontiers.values()))
