"""An SQLite file with a write-ahead log, which several processes of a node may open at once."""

import sqlite3
import time
from pathlib import Path
from typing import Literal


def open_write_ahead(
    path: Path, schema: str, *, synchronous: Literal["FULL", "NORMAL"], busy_timeout_s: float
) -> sqlite3.Connection:
    """Open a file, made if it is missing, and run `schema`. Usable from any thread, by one at a time.

    synchronous: `FULL`, a commit has reached the disk; `NORMAL`, a power failure may take the last ones, and only they.
    Raises what sqlite3 raises.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=busy_timeout_s, check_same_thread=False)
    try:
        _write_ahead(connection, busy_timeout_s)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, busy_timeout_s: float) -> None:
    """Turn the write-ahead log on, which a file needs once.

    Of several processes that open a new file at once, one does it; SQLite refuses the others at once, without its own
    wait for a lock (https://www.sqlite.org/c3ref/busy_handler.html: where waiting might deadlock).
    """
    deadline = time.monotonic() + busy_timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(0.01)
