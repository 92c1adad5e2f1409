"""The SQLite file under the read model: one writer, any number of readers, and made anew where it is not ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock

import structlog
from filelock import FileLock, Timeout

from connectors.sqlite_file import open_write_ahead
from gateway.read_tables import SCHEMA, VERSION
from schemas.errors import Fatal, Unavailable

log = structlog.get_logger()

_BUSY_S = 5.0
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CACHE_KIB = 64 * 1024


class ReadModelFile:
    """An open file, and its lock. Raises Fatal if another process has it, or it cannot be made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock", thread_local=False)
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._making = Lock()
        self.is_damaged = False  # somebody has found it so
        was_ours = Path(f"{path}.lock").exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise Fatal(f"the read model {path} is another gateway's; give each a file: HEADRACE_READ_MODEL") from error
        except OSError as error:
            raise self._cannot_be_made(error) from error
        self._refuse_anothers(was_ours=was_ours)
        self._db = self._open()

    def _refuse_anothers(self, *, was_ours: bool) -> None:
        """Raise Fatal for a file that is no read model, and would be lost; a broken one is ours if it has a lock."""
        if not self._path.exists() or self._path.stat().st_size == 0:
            return
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_S)) as db:
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError:
            tables = {"positions"} if was_ours else {"unknown"}
        if tables and "positions" not in tables:
            self._lock.release()
            raise Fatal(f"{self._path} is no read model, and is left as it is; set HEADRACE_READ_MODEL to another file")

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
            self._db.execute("COMMIT")
        except BaseException as error:
            self._note_damage(error)
            if self._db.in_transaction:  # SQLite has ended it where the disk is full
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, which sees the file as it is now until the caller is done."""
        idle, db = self._reader()
        try:
            db.execute("BEGIN")
            yield db
        except sqlite3.DatabaseError as error:
            self._note_damage(error)
            if not self.is_damaged:
                raise
            raise Unavailable("the read model is damaged and is being made anew; ask again") from error
        finally:
            if self.is_damaged:
                db.close()
            else:
                if db.in_transaction:
                    db.execute("COMMIT")
                idle.put(db)

    def remake(self) -> None:
        """Begin with an empty file: what this one holds is damaged, or means nothing any more."""
        with self._making:
            self._db.close()
            self._idle = SimpleQueue()  # whoever reads the former file gives it back to the former queue
            self._remove()
            self._db = self._opened()
            self.is_damaged = False

    def _note_damage(self, error: BaseException) -> None:
        if isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            self.is_damaged = True

    def _reader(self) -> tuple[SimpleQueue[sqlite3.Connection], sqlite3.Connection]:
        with self._making:
            try:
                return self._idle, self._idle.get_nowait()
            except Empty:
                db = sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False)
                db.execute("PRAGMA query_only = 1")
                db.execute("SELECT 1 FROM sqlite_master").fetchone()  # which opens the file that is there now
                return self._idle, db

    def _open(self) -> sqlite3.Connection:
        try:
            db = self._opened()
            ((version,),) = db.execute("PRAGMA user_version").fetchall()
            if version == VERSION:
                db.execute("SELECT * FROM positions, sources").fetchall()  # both are needed at the start
                return db
            db.close()
            log.info("the read model is of another version; it is made anew", path=str(self._path), version=version)
        except sqlite3.DatabaseError as error:
            log.warning("the read model is broken; it is made anew", path=str(self._path), error=str(error))
        self._remove()
        try:
            return self._opened()
        except sqlite3.Error as error:
            raise self._cannot_be_made(error) from error

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _opened(self) -> sqlite3.Connection:
        is_new = not self._path.exists()
        db = open_write_ahead(self._path, SCHEMA, synchronous="NORMAL", busy_timeout_s=_BUSY_S)
        if is_new:
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return db

    def _cannot_be_made(self, error: Exception) -> Fatal:
        return Fatal(f"the read model {self._path} cannot be made: {error}; set HEADRACE_READ_MODEL")
