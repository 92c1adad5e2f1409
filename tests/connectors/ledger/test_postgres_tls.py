"""The ledger in a PostgreSQL that wants TLS and a password."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from connectors.ledger.postgres import PostgresStore
from schemas.errors import Fatal
from tests.certificates import Authority
from tests.postgres_server import PostgresServer, missing_server

PASSWORD = "tide-and-mill-7"  # noqa: S105  # for as long as a test runs


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[PostgresServer]:
    missing = missing_server()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with PostgresServer() as server:
        with psycopg.connect(server.conninfo) as at:
            at.execute(f"CREATE USER mill PASSWORD '{PASSWORD}'")
            at.execute("GRANT ALL ON SCHEMA public TO mill")
        server.require_tls(*authority.sign("postgres", "127.0.0.1"))
        yield server


def used(conninfo: str, password: str = PASSWORD) -> None:
    """Raises what the ledger's first use raises."""

    async def scenario() -> None:
        store = PostgresStore(conninfo, password=password)
        try:
            await store.register("owner", "claimant", 30.0)
        finally:
            await store.close()

    asyncio.run(scenario())


def refused(conninfo: str, password: str = PASSWORD) -> str:
    with pytest.raises(Fatal) as caught:
        used(conninfo, password)
    message = str(caught.value)
    assert "\n" not in message
    assert password not in message
    assert "HEADRACE_LEDGER" in message
    return message


def test_a_verified_server_is_used(server: PostgresServer, authority: Authority) -> None:
    used(server.conninfo_as("mill", sslmode="verify-full", sslrootcert=str(authority.ca)))


def test_a_server_of_another_authority_is_fatal(server: PostgresServer, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    conninfo = server.conninfo_as("mill", sslmode="verify-full", sslrootcert=str(stranger.ca))
    assert "certificate verify failed" in refused(conninfo)


def test_a_server_of_another_name_is_fatal(server: PostgresServer, authority: Authority) -> None:
    conninfo = server.conninfo_as("mill", sslmode="verify-full", sslrootcert=str(authority.ca))
    assert "does not match host name" in refused(conninfo.replace("127.0.0.1", "localhost"))


def test_a_missing_authority_is_fatal(server: PostgresServer) -> None:
    conninfo = server.conninfo_as("mill", sslmode="verify-full", sslrootcert="/no/such/file")
    assert "/no/such/file" in refused(conninfo)


def test_no_tls_where_the_server_wants_it_is_fatal(server: PostgresServer) -> None:
    assert "no encryption" in refused(server.conninfo_as("mill", sslmode="disable"))


def test_a_wrong_password_is_fatal_and_not_shown(server: PostgresServer, authority: Authority) -> None:
    conninfo = server.conninfo_as("mill", sslmode="verify-full", sslrootcert=str(authority.ca))
    assert "authentication failed" in refused(conninfo, "made-of-water")


def test_a_url_that_is_none_is_fatal_and_not_shown(server: PostgresServer) -> None:
    assert "tide" not in refused(server.conninfo_as("mill:tide%zz"))
