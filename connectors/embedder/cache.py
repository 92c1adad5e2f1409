"""Vectors of texts that were embedded before, on disk: text that did not change is never embedded again.

Guarantee: a vector comes from the same model and the very same text. The file holds vectors and digests, no text. It is
only a cache: one that is lost, locked, full or damaged costs time, and a line in the log.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog
from prometheus_client import Counter

from connectors.embedder.batcher import Rows
from connectors.embedder.port import Embedder, Tokenizer
from connectors.sqlite_file import open_write_ahead

T = TypeVar("T")

log = structlog.get_logger()

EMBEDDED = Counter(
    "headrace_embedded_texts", "Texts embedded, by where the vector came from: the model, or the cache.", ["source"]
)

_BUSY_TIMEOUT_S = 1.0  # another process writes some hundred vectors
_ROW_BYTES = 120  # of a row beside its vector, with its share of the index
_EVICTED_SHARE = 10  # a tenth of the rows at once, the oldest
_KEYS = 500  # per IN (...)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, vector BLOB NOT NULL) STRICT;
"""


class CachedEmbedder(Embedder):
    """An embedder that remembers, in the file at `path`, of at most about `max_bytes`."""

    def __init__(self, inner: Embedder, path: Path, *, max_bytes: int) -> None:
        self._inner = inner
        self._path = path
        self._most_rows = max(1, max_bytes // (4 * inner.dimensions + _ROW_BYTES))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedding-cache")
        self._connection: sqlite3.Connection | None = None
        self._off = False
        self._scope = f"{inner.model}/{inner.dimensions}/".encode()

    @property
    def model(self) -> str:
        """See Embedder."""
        return self._inner.model

    @property
    def dimensions(self) -> int:
        """See Embedder."""
        return self._inner.dimensions

    @property
    def max_tokens(self) -> int:
        """See Embedder."""
        return self._inner.max_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """See Embedder."""
        return self._inner.tokenizer

    async def embed(self, texts: Sequence[str]) -> Rows:
        """Embed the texts that were never embedded before, each once; raises what the embedder behind raises."""
        keys = [sha256(self._scope + text.encode("utf-8", errors="surrogatepass")).digest() for text in texts]
        known = await self._run(lambda at: self._read(at, keys)) or {}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            rows = await self._inner.embed(list(missing.values()))
            fresh = dict(zip(missing, rows, strict=True))
            await self._run(lambda at: self._write(at, fresh))
            known |= fresh
        EMBEDDED.labels("model").inc(len(missing))
        EMBEDDED.labels("cache").inc(len(texts) - len(missing))
        return np.array([known[key] for key in keys], dtype=np.float32).reshape(len(texts), self.dimensions)

    async def close(self) -> None:
        """Close the file and the embedder behind it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()
        await self._inner.close()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """None if the cache is of no use."""
        if self._off:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        try:
            if self._connection is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._connection = open_write_ahead(
                    self._path, _SCHEMA, synchronous="NORMAL", busy_timeout_s=_BUSY_TIMEOUT_S
                )
            with self._connection as connection:  # commits, or rolls back
                return work(connection)
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                return None
            self._off = True
            log.warning(
                "the embedding cache is off: delete the file if it is damaged, make room if the disk is full",
                file=str(self._path),
                reason=str(error),
            )
            return None

    def _read(self, at: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Rows]:
        known: dict[bytes, Rows] = {}
        for first in range(0, len(keys), _KEYS):
            some = keys[first : first + _KEYS]
            marks = ", ".join("?" * len(some))
            for key, vector in at.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", some):  # noqa: S608  # marks
                row = np.frombuffer(vector, dtype="<f4") if len(vector) == 4 * self.dimensions else None
                if row is not None and np.isfinite(row).all():
                    known[key] = row
        return known

    def _write(self, at: sqlite3.Connection, fresh: dict[bytes, Rows]) -> None:
        at.execute("BEGIN IMMEDIATE")
        rows = [(key, row.astype("<f4").tobytes()) for key, row in fresh.items()]
        at.executemany("INSERT OR REPLACE INTO vectors (key, vector) VALUES (?, ?)", rows)
        first, last = at.execute("SELECT min(number), max(number) FROM vectors").fetchone()
        if last - first >= self._most_rows:
            at.execute("DELETE FROM vectors WHERE number <= ?", (last - self._most_rows * (1 - 1 / _EVICTED_SHARE),))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
