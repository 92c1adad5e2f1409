"""The SQLite file under the read model: one writer, any number of readers, and made anew where it is not ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import structlog
from filelock import FileLock, Timeout

from connectors.sqlite_file import open_write_ahead
from gateway.read_tables import SCHEMA, VERSION
from schemas.errors import Fatal

log = structlog.get_logger()

_BUSY_S = 5.0
_CACHE_KIB = 64 * 1024


class ReadModelFile:
    """An open file, and its lock. Raises Fatal if another process has it, or it cannot be made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock", thread_local=False)
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise Fatal(f"the read model {path} is another gateway's; give each a file: HEADRACE_READ_MODEL") from error
        except OSError as error:
            raise self._cannot_be_made(error) from error
        self._db = self._open()

    def close(self) -> None:
        """Give the file back."""
        self._db.close()
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
        self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, all or nothing; for one thread at a time."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, which sees the file as it is now until the caller is done."""
        try:
            db = self._idle.get_nowait()
        except Empty:
            db = sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False)
            db.execute("PRAGMA query_only = 1")
        try:
            db.execute("BEGIN")
            yield db
        finally:
            db.execute("COMMIT")
            self._idle.put(db)

    def clear(self) -> None:
        """Drop all rows."""
        with self.writing() as db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                db.execute(f"DROP TABLE {table}")
            for statement in SCHEMA.split(";"):
                db.execute(statement)

    def _open(self) -> sqlite3.Connection:
        try:
            db = self._opened()
            ((version,),) = db.execute("PRAGMA user_version").fetchall()
            if version == VERSION:
                return db
            db.close()
            log.info("the read model is of another version; it is made anew", path=str(self._path), version=version)
        except sqlite3.DatabaseError as error:
            log.warning("the read model is broken; it is made anew", path=str(self._path), error=str(error))
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        try:
            return self._opened()
        except sqlite3.Error as error:
            raise self._cannot_be_made(error) from error

    def _opened(self) -> sqlite3.Connection:
        is_new = not self._path.exists()
        db = open_write_ahead(self._path, SCHEMA, synchronous="NORMAL", busy_timeout_s=_BUSY_S)
        if is_new:
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return db

    def _cannot_be_made(self, error: Exception) -> Fatal:
        return Fatal(f"the read model {self._path} cannot be made: {error}; set HEADRACE_READ_MODEL")
