"""What SQLite has acknowledged is there after kill -9."""

import asyncio
import subprocess
import sys
from pathlib import Path

from connectors.ledger.port import Attempt, Stored
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore
from tests.connectors.ledger.committer import AT_ONCE, result_of

ROOT = Path(__file__).parents[3]


def acknowledged_until_killed(file: Path, owner: str, prefix: str, *, jobs: int) -> set[str]:
    """Of a process that is killed while it commits."""
    command = [sys.executable, "-m", "tests.connectors.ledger.committer", str(file), owner, prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            said = {process.stdout.readline().strip() for _ in range(jobs)}
        finally:
            process.kill()
        return said | {line.strip() for line in process.stdout.read().splitlines()[:-1]}


def test_every_commit_that_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    acknowledged: set[str] = set()
    for run in range(4):
        acknowledged |= acknowledged_until_killed(file, "owner", f"run{run}", jobs=100 + 37 * run)

    async def look() -> None:
        ledger = SqlLedger(SqliteStore(file), "owner")
        for job_id in sorted(acknowledged):
            outcome = await ledger.claim(Attempt(job_id, "acme", "h", "t/0/2", "token"))
            assert outcome == Stored(result_of(job_id), published=False, origin="t/0/1"), job_id
        await ledger.close()

    asyncio.run(look())
    assert len(acknowledged) >= 4 * 100 - AT_ONCE


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    async def open_at_once(file: Path) -> None:
        stores = [SqliteStore(file) for _ in range(8)]
        try:
            await asyncio.gather(*(store.register(f"o{n}", f"c{n}", 30.0) for n, store in enumerate(stores)))
        finally:
            for store in stores:
                await store.close()

    for run in range(60):
        asyncio.run(open_at_once(tmp_path / f"{run}.sqlite"))
