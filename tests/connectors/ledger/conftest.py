"""Both databases behind one fixture; time passes by shifting what they have stored."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from connectors.ledger.postgres import PostgresStore
from connectors.ledger.sql import Store
from connectors.ledger.sqlite import SqliteStore
from tests.postgres_server import PostgresServer, missing_server


@dataclass(frozen=True)
class Database:
    """A database for ledgers: `store` opens it, `advance` lets seconds pass in it, `clear` empties it."""

    store: Callable[[], Store]
    advance: Callable[[float], None]
    clear: Callable[[], None]
    lease_left_s: Callable[[str], float]  # of a claimant


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL, shared by all tests of a run; a test that stops it starts it again."""
    missing = missing_server()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with PostgresServer() as server:
        yield server


def sqlite_database(path: Path) -> Database:
    def run(*statements: str, seconds: float = 0.0) -> None:
        if path.exists():
            with closing(sqlite3.connect(path, timeout=30)) as at, at:
                for statement in statements:
                    at.execute(statement, {"seconds": seconds} if ":seconds" in statement else {})

    def lease_left_s(claimant: str) -> float:
        query = "SELECT lease_until - (julianday('now') - 2440587.5) * 86400 FROM claimants WHERE claimant = ?"
        with closing(sqlite3.connect(path, timeout=30)) as at:
            return float(at.execute(query, (claimant,)).fetchone()[0])

    return Database(
        store=lambda: SqliteStore(path),
        advance=lambda seconds: run(
            "UPDATE claimants SET lease_until = lease_until - :seconds",
            "UPDATE jobs SET changed_at = changed_at - :seconds",
            seconds=seconds,
        ),
        clear=lambda: run("DELETE FROM jobs", "DELETE FROM claimants"),
        lease_left_s=lease_left_s,
    )


def postgres_database(server: PostgresServer) -> Database:
    def run(*statements: LiteralString, seconds: float = 0.0) -> None:
        with psycopg.connect(server.conninfo) as at:
            for statement in statements:
                try:
                    with at.transaction():
                        at.execute(statement, {"seconds": seconds})
                except psycopg.errors.UndefinedTable:
                    return

    def lease_left_s(claimant: str) -> float:
        query: LiteralString = (
            "SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM headrace_claimants WHERE claimant = %s"
        )
        with psycopg.connect(server.conninfo) as at:
            row = at.execute(query, (claimant,)).fetchone()
            assert row is not None
            return float(row[0])

    return Database(
        store=lambda: PostgresStore(server.conninfo),
        advance=lambda seconds: run(
            "UPDATE headrace_claimants SET lease_until = lease_until - make_interval(secs => %(seconds)s)",
            "UPDATE headrace_jobs SET changed_at = changed_at - make_interval(secs => %(seconds)s)",
            seconds=seconds,
        ),
        clear=lambda: run("DELETE FROM headrace_jobs", "DELETE FROM headrace_claimants"),
        lease_left_s=lease_left_s,
    )


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_database(tmp_path / "ledger.sqlite")
    database = postgres_database(request.getfixturevalue("postgres"))
    database.clear()
    return database
