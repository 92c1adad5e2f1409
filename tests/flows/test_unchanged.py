"""Uploads of what is indexed already: left out where that is certain, done where it is not."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bytewax.testing import TestingSource, run_main

from connectors.embedder.port import Embedder
from connectors.event_loop import EventLoop
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.stop import Stop
from connectors.object_store import ObjectStore
from connectors.parsers.pool import ProcessParser
from connectors.vector_index.edge import EdgeIndex
from flows import ingest
from operators.chunk import ChunkPolicy
from operators.extract import ExtractPolicy
from operators.runtime import Runtime
from schemas.dead_letter import REDRIVE_HEADER
from schemas.documents import DocumentUploaded
from tests.chaos.victim import HashEmbedder
from tests.memory_topics import Entry, MemoryTopics, record


class Counting(HashEmbedder):
    """Knows what it was asked to embed."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += texts
        return await super().embed(texts)


class Mill:
    """An installation that is stopped and started between uploads."""

    def __init__(self, directory: Path, loop: EventLoop) -> None:
        self._directory = directory
        self._loop = loop
        self._entries: list[Entry] = []
        self.embedder = Counting()
        self.vectors = EdgeIndex(directory / "vectors")
        self.chunking = ChunkPolicy(40, 5)

    def ingest(self, *uploads: DocumentUploaded, redriven: bool = False) -> MemoryTopics:
        """One process: what was uploaded since the former one."""
        for upload in uploads:
            entry = record(upload, offset=len(self._entries))
            self._entries.append(replace(entry, headers=((REDRIVE_HEADER, b"1"),)) if redriven else entry)
        self._entries.append(TestingSource.EOF())
        topics = MemoryTopics(self._entries)
        parser = ProcessParser(workers=1)
        store = ObjectStore(str(self._directory / "objects"), file_roots=(self._directory,))
        embedder: Embedder = self.embedder
        try:
            with RecoveryDirectory(self._directory / "ingest") as recovery:
                runtime = Runtime(topics, self._loop, Stop())
                policies = (ExtractPolicy(), self.chunking)
                flow = ingest.build(runtime, store, parser, embedder, self.vectors, *policies)
                run_main(flow, recovery_config=recovery.config())
        finally:
            self._loop.run(parser.close(), timeout_s=30)
        return topics

    def texts(self, document_id: str) -> list[str]:
        found = self.vectors.list_document("documents", tenant="default", document_id=document_id)
        return [point.text for point in self._loop.run(found, timeout_s=30)]

    def lose(self, document_id: str) -> None:
        """Delete a document behind the flow's back."""
        deleted = self.vectors.delete_document("documents", tenant="default", document_id=document_id)
        self._loop.run(deleted, timeout_s=30)


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    with EventLoop() as loop:
        mill = Mill(tmp_path, loop)
        yield mill
        loop.run(mill.vectors.close(), timeout_s=30)


def note(job_id: str, text: str | None = "The race is 310 metres long.", **fields: str) -> DocumentUploaded:
    return DocumentUploaded.model_validate({"job_id": job_id, "document_id": "d", "text": text} | fields)


def test_the_same_content_again_is_not_embedded_again_and_its_job_ends_as_any_other(mill: Mill) -> None:
    mill.ingest(note("a"))
    embedded = list(mill.embedder.texts)
    topics = mill.ingest(note("b"))
    assert mill.embedder.texts == embedded
    (indexed,) = topics.on("documents.indexed")
    assert (indexed["job_id"], indexed["chunks"]) == ("b", 1)
    assert topics.statuses()[-1].state == "completed"


def test_a_file_is_known_by_the_digest_that_its_upload_announces(mill: Mill, tmp_path: Path) -> None:
    path = tmp_path / "race.txt"
    path.write_text("The race is 310 metres long.")
    announced = {"uri": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    mill.ingest(note("a", None, **announced))
    mill.ingest(note("b", None, **announced))
    assert len(mill.embedder.texts) == 1
    mill.ingest(note("c", None, uri=path.as_uri()))  # announces nothing: it has to be read
    assert len(mill.embedder.texts) == 2


def test_new_content_replaces_the_old_and_the_old_again_replaces_the_new(mill: Mill) -> None:
    mill.ingest(note("a", "One."))
    mill.ingest(note("b", "Two."))
    assert mill.texts("d") == ["Two."]
    mill.ingest(note("c", "One."))
    assert mill.texts("d") == ["One."]
    mill.ingest(note("d", "Two."), note("e", "One."), note("f", "Two."), note("g", "One."))
    assert mill.texts("d") == ["One."]


def test_what_was_deleted_or_lost_from_the_index_is_indexed_again(mill: Mill) -> None:
    mill.ingest(note("a"))
    mill.ingest(DocumentUploaded.model_validate({"job_id": "x", "document_id": "d", "op": "delete"}))
    mill.ingest(note("b"))
    assert len(mill.texts("d")) == 1
    mill.lose("d")
    mill.ingest(note("c"))
    assert len(mill.texts("d")) == 1


def test_another_way_of_chunking_or_a_redrive_does_the_work_again(mill: Mill) -> None:
    mill.ingest(note("a"))
    mill.ingest(note("b"), redriven=True)
    assert len(mill.embedder.texts) == 2
    mill.chunking = ChunkPolicy(30, 5)
    mill.ingest(note("c"))
    assert len(mill.embedder.texts) == 3


def test_the_same_content_under_another_document_or_tenant_is_another_document(mill: Mill) -> None:
    mill.ingest(note("a"))
    mill.ingest(note("b", document_id="e"), note("c", tenant="other"))
    assert len(mill.embedder.texts) == 3
