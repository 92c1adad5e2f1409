"""An ingest flow that is stopped and started between uploads, with everything real but model and topics."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bytewax.testing import TestingSource, run_main

from connectors.cancellations import Cancellations
from connectors.embedder.cache import CachedEmbedder
from connectors.embedder.port import Embedder
from connectors.event_loop import EventLoop
from connectors.kafka.record import Record
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.stop import Stop
from connectors.object_store import ObjectStore
from connectors.parsers.pool import ProcessParser
from connectors.spaces import IndexedSpaces
from connectors.vector_index.edge import EdgeIndex
from flows import ingest
from operators.chunk import ChunkPolicy
from operators.extract import ExtractPolicy
from operators.runtime import Runtime
from schemas.dead_letter import REDRIVE_HEADER
from schemas.documents import DocumentUploaded
from schemas.errors import Poison
from tests.chaos.victim import HashEmbedder
from tests.memory_topics import Entry, MemoryTopics, record


class Counting(HashEmbedder):
    """Knows what it was asked to embed."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += texts
        if any("Unembeddable" in text for text in texts):
            raise Poison("the model fails on this")
        return await super().embed(texts)


class Mill:
    """An installation that is stopped and started between uploads."""

    def __init__(self, directory: Path, loop: EventLoop) -> None:
        self._directory = directory
        self.loop = loop
        self._entries: list[Entry] = []
        self.embedder = Counting()
        self.cancellations = Cancellations()
        self.remembering = CachedEmbedder(self.embedder, directory / "embeddings.sqlite", max_bytes=1_000_000)
        self.vectors = EdgeIndex(directory / "vectors")
        self.chunking = ChunkPolicy(40, 5)

    def ingest(self, *uploads: DocumentUploaded, redriven: bool = False, remember: bool = False) -> MemoryTopics:
        """One process: what was uploaded since the former one."""
        for upload in uploads:
            entry = record(upload, offset=len(self._entries))
            self._entries.append(replace(entry, headers=((REDRIVE_HEADER, b"1"),)) if redriven else entry)
        return self.run(remember=remember)

    def run(self, *records: Record, remember: bool = False) -> MemoryTopics:
        """One process: what was uploaded since the former one, as it lies on the topic."""
        self._entries += records
        self._entries.append(TestingSource.EOF())
        topics = MemoryTopics(self._entries)
        parser = ProcessParser(workers=1)
        store = ObjectStore(str(self._directory / "objects"), file_roots=(self._directory,))
        embedder: Embedder = self.remembering if remember else self.embedder
        try:
            with RecoveryDirectory(self._directory / "ingest") as recovery:
                runtime = Runtime(topics, self.loop, Stop(), cancellations=self.cancellations)
                policies = (ExtractPolicy(), self.chunking)
                spaces = IndexedSpaces(self.vectors, [lambda: embedder])
                flow = ingest.build(runtime, store, parser, spaces, self.vectors, *policies)
                run_main(flow, recovery_config=recovery.config())
        finally:
            self.loop.run(parser.close(), timeout_s=30)
        return topics

    @property
    def uploaded(self) -> int:
        """How many uploads there have been: the next one's offset."""
        return sum(isinstance(entry, Record) for entry in self._entries)

    def anything(self) -> bytes:
        """A vector to search by where everything is to be found."""
        (row,) = self.loop.run(self.embedder.embed(["anything"]), timeout_s=30)
        return bytes(row.astype("<f4").tobytes())

    def texts(self, document_id: str) -> list[str]:
        found = self.vectors.list_document("documents", tenant="default", document_id=document_id)
        return [point.text for point in self.loop.run(found, timeout_s=30)]

    def lose(self, document_id: str) -> None:
        """Delete a document behind the flow's back."""
        deleted = self.vectors.delete_document("documents", tenant="default", document_id=document_id)
        self.loop.run(deleted, timeout_s=30)
