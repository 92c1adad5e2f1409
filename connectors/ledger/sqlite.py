"""The ledger in an SQLite file: for one node.

Guarantee: `synchronous=FULL` with a write-ahead log: a commit has reached the disk, power loss included. Several
processes of the node may share the file; each transaction takes the write lock at its beginning.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from connectors.ledger.entry import Entry
from connectors.ledger.sql import COLUMNS, Apply, Store, entry_of, row_of
from connectors.sqlite_file import open_write_ahead
from schemas.errors import Fatal, HeadraceError, Unavailable

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0  # another process of the node writes; its transactions take milliseconds

_NOW = "((julianday('now') - 2440587.5) * 86400.0)"  # Unix seconds; unixepoch('subsec') needs SQLite 3.42
_SCHEMA = """
CREATE TABLE IF NOT EXISTS claimants (
    claimant TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    lease_until REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    origin TEXT NOT NULL,
    state TEXT NOT NULL,
    token TEXT NOT NULL,
    claimant TEXT NOT NULL,
    failures INTEGER NOT NULL,
    redrives INTEGER NOT NULL,
    ambiguities INTEGER NOT NULL,
    ambiguous INTEGER NOT NULL,
    result BLOB,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    published INTEGER NOT NULL,
    failure TEXT,
    changed_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (changed_at) WHERE state IN ('done', 'given_up');
"""
_WRITE = (
    f"INSERT OR REPLACE INTO jobs ({', '.join(COLUMNS)}, changed_at) "  # noqa: S608  # names of columns
    f"VALUES ({', '.join('?' * len(COLUMNS))}, {_NOW})"
)
_VARIABLES = 500  # names per IN (...); SQLite's own limit was 999 for long

_PERSONS_CASE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
)


class SqliteStore(Store):
    """An SQLite file, opened when it is first needed, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None

    async def register(self, owner: str, claimant: str, lease_s: float) -> None:
        """See Store."""

        def work(at: sqlite3.Connection) -> None:
            at.execute("DELETE FROM claimants WHERE owner = ?", (owner,))
            at.execute(f"INSERT INTO claimants VALUES (?, ?, {_NOW} + ?)", (claimant, owner, lease_s))  # noqa: S608  # a constant

        await self._run(work)

    async def renew(self, claimant: str, lease_s: float) -> bool:
        """See Store."""
        statement = f"UPDATE claimants SET lease_until = {_NOW} + ? WHERE claimant = ?"  # noqa: S608  # a constant
        return await self._run(lambda at: at.execute(statement, (lease_s, claimant)).rowcount == 1)

    async def transact(self, job_ids: Sequence[str], apply: Apply) -> None:
        """See Store."""

        def work(at: sqlite3.Connection) -> None:
            entries: dict[str, Entry] = {}
            for first in range(0, len(job_ids), _VARIABLES):
                some = job_ids[first : first + _VARIABLES]
                marks = ", ".join("?" * len(some))
                rows = at.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE job_id IN ({marks})", some)  # noqa: S608  # marks
                entries |= {row[0]: entry_of(row) for row in rows}
            live = {row[0] for row in at.execute(f"SELECT claimant FROM claimants WHERE lease_until > {_NOW}")}  # noqa: S608  # same
            at.executemany(_WRITE, [row_of(entry) for entry in apply(entries, live)])

        await self._run(work)

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """See Store."""
        statement = "UPDATE jobs SET published = 1 WHERE job_id = ? AND state = 'done'"
        await self._run(lambda at: at.executemany(statement, [(job_id,) for job_id in job_ids]))

    async def expire(self, older_than_s: float, limit: int) -> int:
        """See Store."""
        statement = (
            "DELETE FROM jobs WHERE rowid IN (SELECT rowid FROM jobs WHERE state IN ('done', 'given_up') "  # noqa: S608  # a constant
            f"AND changed_at < {_NOW} - ? LIMIT ?)"
        )
        return await self._run(lambda at: at.execute(statement, (older_than_s, limit)).rowcount)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                found = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._classed(error) from error
        return found

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)  # it holds answers
        except OSError as error:
            raise Fatal(f"ledger {self._path}: {error.strerror}; name another file in HEADRACE_LEDGER") from error
        self._connection = open_write_ahead(self._path, _SCHEMA, synchronous="FULL", busy_timeout_s=BUSY_TIMEOUT_S)
        return self._connection

    def _classed(self, error: sqlite3.Error) -> HeadraceError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary result code
        what = f"ledger {self._path}: {error}"
        if code == sqlite3.SQLITE_FULL:
            return Fatal(f"{what}; free some space, then start again: nothing is lost")
        if code in _PERSONS_CASE:
            return Fatal(f"{what}; check the file and its disk, then start again")
        return Unavailable(what)

    async def close(self) -> None:
        """See Store."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()
