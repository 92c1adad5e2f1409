"""The whole corpus of hostile files through the ingest flow, with a benign document after each."""

from pathlib import Path

from bytewax.testing import run_main

from connectors.event_loop import EventLoop
from connectors.kafka.stop import Stop
from connectors.object_store import ObjectStore
from connectors.parsers.pool import ProcessParser
from connectors.spaces import IndexedSpaces
from connectors.vector_index.edge import EdgeIndex
from flows import ingest
from operators.chunk import ChunkPolicy
from operators.extract import ExtractPolicy
from operators.runtime import Runtime
from schemas.documents import DocumentUploaded
from tests.chaos.victim import HashEmbedder
from tests.connectors.parsers.hostile import corpus
from tests.memory_topics import MemoryTopics, record


def test_each_hostile_file_is_accounted_for_and_every_benign_document_is_indexed(tmp_path: Path) -> None:
    uploads: list[DocumentUploaded] = []
    for number, hostile in enumerate(file for file in corpus() if "slow" not in file.ends):
        path = tmp_path / f"{number}-{hostile.name}"
        path.write_bytes(hostile.build())
        uploads.append(DocumentUploaded(job_id=f"hostile-{number}", document_id=f"h{number}", uri=path.as_uri()))
        text = f"Benign document number {number}."
        uploads.append(DocumentUploaded(job_id=f"benign-{number}", document_id=f"b{number}", text=text))
    topics = MemoryTopics([record(upload, offset=number) for number, upload in enumerate(uploads)], batch_size=8)
    with EventLoop() as loop:
        parser, vectors = ProcessParser(workers=2, memory_bytes=512 << 20), EdgeIndex(tmp_path / "vectors")
        store = ObjectStore(str(tmp_path / "objects"), file_roots=(tmp_path,))
        spaces = IndexedSpaces(vectors, [HashEmbedder])
        policies = (ExtractPolicy(), ChunkPolicy(40, 5))
        try:
            run_main(ingest.build(Runtime(topics, loop, Stop()), store, parser, spaces, vectors, *policies))
        finally:
            loop.run(parser.close(), timeout_s=30)
            loop.run(vectors.close(), timeout_s=30)
    indexed = {str(each["job_id"]) for each in topics.on("documents.indexed")}
    dead = {letter.job_id for letter in topics.dead_letters()}
    assert indexed | dead == {upload.job_id for upload in uploads}
    assert not indexed & dead
    assert {job for job in dead if job.startswith("benign")} == set()
    assert len(uploads) >= 2 * 40
