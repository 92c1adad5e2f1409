"""A process that ends jobs in an SQLite ledger, and names each on stdout once the ledger has acknowledged it.

`python -m tests.connectors.ledger.committer FILE OWNER PREFIX`, until it is killed.
"""

import asyncio
import sys
from itertools import count
from pathlib import Path
from uuid import uuid4

from connectors.ledger.port import Attempt, Claim, Usage
from connectors.ledger.sql import SqlLedger
from connectors.ledger.sqlite import SqliteStore

AT_ONCE = 20
RESULT_BYTES = 1000


def result_of(job_id: str) -> bytes:
    return f"the answer of {job_id} ".encode().ljust(RESULT_BYTES, b".")


async def main(file: str, owner: str, prefix: str) -> None:
    ledger = SqlLedger(SqliteStore(Path(file)), owner)
    names = (f"{prefix}-{number}" for number in count())

    async def lane() -> None:
        for name in names:
            claim = await ledger.claim(Attempt(name, "acme", "h", "t/0/1", uuid4().hex))
            assert isinstance(claim, Claim)
            assert await ledger.commit(claim, result_of(name), Usage(1, 1))
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
