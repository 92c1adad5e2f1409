"""The ledger in PostgreSQL: for processes on several nodes.

Guarantee: commits are synchronous, whatever the server's default. Entries are locked in the order of their ids, so that
two processes never wait for each other in a circle. A server that does not answer within `timeout_s` is out of reach:
the connection is dropped, and what was under way may or may not have happened, which every operation allows for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict

from connectors.ledger.sql import COLUMNS, Apply, Store, entry_of, row_of
from schemas.errors import Fatal, HeadraceError, Unavailable

T = TypeVar("T")

TIMEOUT_S = 5.0  # per transaction; one of 500 operations takes some 20 ms

_SCHEMA: tuple[LiteralString, ...] = (
    """CREATE TABLE IF NOT EXISTS headrace_claimants (
    claimant TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL
)""",
    """CREATE TABLE IF NOT EXISTS headrace_jobs (
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
    result BYTEA,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    published INTEGER NOT NULL,
    failure TEXT,
    changed_at TIMESTAMPTZ NOT NULL
)""",
    """CREATE INDEX IF NOT EXISTS headrace_jobs_by_end ON headrace_jobs (changed_at)
    WHERE state IN ('done', 'given_up')""",
)
_SCHEMA_LOCK = 7_236_118_640_521  # any number: two processes that create the tables at once would fail otherwise
_NAMES: LiteralString = (
    "job_id, tenant, request_hash, origin, state, token, claimant, failures, redrives, ambiguities, ambiguous, result, "
    "prompt_tokens, completion_tokens, published, failure"
)
_SET: LiteralString = (
    "origin = excluded.origin, state = excluded.state, token = excluded.token, claimant = excluded.claimant, "
    "failures = excluded.failures, "
    "redrives = excluded.redrives, ambiguities = excluded.ambiguities, ambiguous = excluded.ambiguous, "
    "result = excluded.result, prompt_tokens = excluded.prompt_tokens, "
    "completion_tokens = excluded.completion_tokens, published = excluded.published, failure = excluded.failure, "
    "changed_at = excluded.changed_at"
)
_VALUES: LiteralString = f"({', '.join(('%s',) * 16)}, clock_timestamp())"
_INSERT: LiteralString = f"INSERT INTO headrace_jobs ({_NAMES}, changed_at) VALUES {_VALUES}"  # noqa: S608  # constants
_UPSERT: LiteralString = f"{_INSERT} ON CONFLICT (job_id) DO UPDATE SET {_SET}"

_REFUSED = (
    "authentication failed",
    "does not exist",
    "permission denied",
    "no pg_hba.conf entry",
    "invalid connection",
    "certificate verify failed",
    "does not match host name",
    "root certificate file",
    "does not support SSL",
)
"""In the message of a failed connection, which has no code: only a person can help."""


class PostgresStore(Store):
    """A PostgreSQL database; `conninfo` is a libpq connection string or URL. Its tables begin with `headrace_`."""

    def __init__(self, conninfo: str, *, password: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._conninfo = conninfo
        self._password = password
        self._timeout_s = timeout_s
        self._connection: AsyncConnection | None = None
        self._dropped: set[asyncio.Task[object]] = set()

    async def register(self, owner: str, claimant: str, lease_s: float) -> None:
        """See Store."""

        async def work(at: AsyncConnection) -> None:
            await at.execute("DELETE FROM headrace_claimants WHERE owner = %s", (owner,))
            await at.execute(
                "INSERT INTO headrace_claimants VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s))",
                (claimant, owner, lease_s),
            )

        await self._run(work)

    async def renew(self, claimant: str, lease_s: float) -> bool:
        """See Store."""

        async def work(at: AsyncConnection) -> bool:
            done = await at.execute(
                "UPDATE headrace_claimants SET lease_until = clock_timestamp() + make_interval(secs => %s) "
                "WHERE claimant = %s",
                (lease_s, claimant),
            )
            return done.rowcount == 1

        return await self._run(work)

    async def transact(self, job_ids: Sequence[str], apply: Apply) -> None:
        """See Store."""

        async def work(at: AsyncConnection) -> None:
            query: LiteralString = (
                f"SELECT {_NAMES} FROM headrace_jobs WHERE job_id = ANY(%s) ORDER BY job_id FOR UPDATE"  # noqa: S608  # constants
            )
            rows = await (await at.execute(query, (list(job_ids),))).fetchall()
            entries = {row[0]: entry_of(row) for row in rows}
            alive = await at.execute("SELECT claimant FROM headrace_claimants WHERE lease_until > clock_timestamp()")
            live = {row[0] for row in await alive.fetchall()}
            changed = apply(entries, live)
            cursor = at.cursor()
            # What was not there could not be locked: if another process has inserted it meanwhile, this one fails.
            changed.sort(key=lambda entry: entry.job_id)  # or two that insert the same ones wait in a circle
            new = [row_of(entry) for entry in changed if entry.job_id not in entries]
            old = [row_of(entry) for entry in changed if entry.job_id in entries]
            if new:
                await cursor.executemany(_INSERT, new)
            if old:
                await cursor.executemany(_UPSERT, old)

        while True:
            with suppress(errors.UniqueViolation):
                return await self._run(work)

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """See Store."""
        await self._run(
            lambda at: at.execute(
                # In the order in which claims lock, or the two wait for each other.
                "UPDATE headrace_jobs SET published = 1 WHERE job_id IN (SELECT job_id FROM headrace_jobs "
                "WHERE job_id = ANY(%s) AND state = 'done' ORDER BY job_id FOR UPDATE)",
                (list(job_ids),),
            )
        )

    async def expire(self, older_than_s: float, limit: int) -> int:
        """See Store."""

        async def work(at: AsyncConnection) -> int:
            done = await at.execute(
                "DELETE FROM headrace_jobs WHERE job_id IN (SELECT job_id FROM headrace_jobs "
                "WHERE state IN ('done', 'given_up') AND changed_at < clock_timestamp() - make_interval(secs => %s) "
                "LIMIT %s FOR UPDATE SKIP LOCKED)",
                (older_than_s, limit),
            )
            return done.rowcount

        return await self._run(work)

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        task = asyncio.create_task(self._transaction(work))
        # Not wait_for: to cancel a query, psycopg talks to the server, and a server that hangs does not answer that.
        try:
            done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            self._drop(task)  # or the next caller would find it in the middle of this transaction
            raise
        if not done:
            self._drop(task)
            raise Unavailable(f"the ledger's PostgreSQL did not answer within {self._timeout_s:g} s")
        try:
            return task.result()
        except psycopg.Error as error:
            if self._connection is not None and self._connection.closed:
                self._connection = None
            if isinstance(error, (errors.UniqueViolation, psycopg.DataError)):
                raise  # the first is repeated; a value that does not fit is its operation's affair
            raise _classed(error) from error

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        connection = self._connection
        async with connection.transaction():
            return await work(connection)

    async def _connect(self) -> AsyncConnection:
        try:
            conninfo_to_dict(self._conninfo)
        except psycopg.ProgrammingError:  # it quotes what it cannot read, which may be a password
            raise Fatal("HEADRACE_LEDGER is no connection URL of PostgreSQL: postgresql://user@host/database") from None
        connection = await AsyncConnection.connect(
            self._conninfo,
            password=self._password,
            autocommit=True,
            connect_timeout=max(int(self._timeout_s), 2),
            application_name="headrace",
        )
        await connection.execute("SET synchronous_commit = on")
        await connection.execute("SET statement_timeout = '30s'")  # what a dropped connection may leave behind
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
            for statement in _SCHEMA:
                await connection.execute(statement)
        return connection

    def _drop(self, task: "asyncio.Task[T]") -> None:
        """Leave a connection that hangs to itself: closing the socket is all that can be done at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                connection.pgconn.finish()
        task.cancel()
        self._dropped.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[T]") -> None:
        self._dropped.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it

    async def close(self) -> None:
        """See Store."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                await asyncio.wait_for(self._connection.close(), self._timeout_s)


def _classed(error: psycopg.Error) -> HeadraceError:
    what = (
        f"the ledger's PostgreSQL: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    )
    persons_case = (
        errors.InsufficientPrivilege,
        errors.UndefinedColumn,
        errors.UndefinedTable,
        psycopg.ProgrammingError,
    )
    if isinstance(error, persons_case) or any(reason in str(error) for reason in _REFUSED):
        return Fatal(f"{what}; check HEADRACE_LEDGER and the rights of its user")
    return Unavailable(what)


if len(COLUMNS) != len(_NAMES.split(",")):
    raise RuntimeError("the columns of the PostgreSQL ledger are not those of an entry")
