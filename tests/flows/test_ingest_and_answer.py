"""The fused flows on topics in memory, with the real parser, model and index."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bytewax.testing import run_main

from connectors.embedder.port import Embedder
from connectors.event_loop import EventLoop
from connectors.kafka.stop import Stop
from connectors.ledger.off import NoLedger
from connectors.llm.extractive import ExtractiveLLM
from connectors.object_store import ObjectStore
from connectors.parsers.pool import ProcessParser
from connectors.spaces import IndexedSpaces, Spaces
from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import Point
from flows import answer, ingest
from operators.chunk import ChunkPolicy, chunk_document
from operators.extract import ExtractPolicy
from operators.runtime import Runtime
from schemas.documents import DocumentExtracted, DocumentUploaded
from schemas.errors import Fatal
from schemas.event import Event
from schemas.requests import RequestSubmitted
from tests.memory_topics import MemoryTopics, record


@dataclass
class Mill:
    """A running installation: files, index, and flows that are run when asked."""

    directory: Path
    loop: EventLoop
    embedder: Embedder
    vectors: EdgeIndex

    @property
    def spaces(self) -> Spaces:
        return IndexedSpaces(self.vectors, [lambda: self.embedder])

    def ingest(self, *uploads: Event) -> MemoryTopics:
        topics = MemoryTopics([record(upload, offset=offset) for offset, upload in enumerate(uploads)])
        parser = ProcessParser(workers=1)
        store = ObjectStore(str(self.directory / "objects"), file_roots=(self.directory,))
        runtime = Runtime(topics, self.loop, Stop())
        try:
            run_main(
                ingest.build(runtime, store, parser, self.spaces, self.vectors, ExtractPolicy(), ChunkPolicy(40, 5))
            )
        finally:
            self.loop.run(parser.close(), timeout_s=30)
        return topics

    def ask(self, prompt: str, *, tenant: str = "default", kind: str = "answer") -> dict[str, object]:
        asked = RequestSubmitted.model_validate({"job_id": "q", "tenant": tenant, "prompt": prompt, "kind": kind})
        topics = MemoryTopics([record(asked)])
        llm = ExtractiveLLM(self.embedder)
        run_main(answer.build(Runtime(topics, self.loop, Stop()), self.spaces, self.vectors, llm, NoLedger()))
        (result,) = topics.on("results.completed")
        return result

    def points(self, document_id: str, tenant: str = "default") -> tuple[Point, ...]:
        found = self.vectors.list_document("documents", tenant=tenant, document_id=document_id)
        return self.loop.run(found, timeout_s=30)


@pytest.fixture
def mill(tmp_path: Path, embedder: Embedder) -> Iterator[Mill]:
    with EventLoop() as loop:
        vectors = EdgeIndex(tmp_path / "vectors")
        yield Mill(tmp_path, loop, embedder, vectors)
        loop.run(vectors.close(), timeout_s=30)


def note(document_id: str, text: str, **fields: str) -> DocumentUploaded:
    return DocumentUploaded.model_validate({"document_id": document_id, "text": text} | fields)


def paragraphs(*numbers: int) -> str:
    sentence = (
        "Paragraph {0} tells of gate {0}, which is opened by hand and needs {0} turns of the crank every morning."
    )
    return "\n\n".join(sentence.format(number) for number in numbers)


def test_an_uploaded_file_is_found_and_cited_with_its_place(mill: Mill) -> None:
    path = mill.directory / "manual.md"
    path.write_text("# Manual\n\nWelcome.\n\n# Gates\n\nThe north gate has a brass lock.\n")
    topics = mill.ingest(DocumentUploaded.model_validate({"document_id": "m", "uri": path.as_uri()}))
    (indexed,) = topics.on("documents.indexed")
    assert indexed["chunks"] == 1
    result = mill.ask("What lock has the north gate?")
    citations = result["citations"]
    assert isinstance(citations, list)
    assert "brass lock" in str(result["text"])
    assert citations[0]["uri"] == path.as_uri()
    assert "Gates" in citations[0]["label"]


def test_a_new_version_keeps_unchanged_chunks_and_leaves_none_of_the_old(mill: Mill) -> None:
    mill.ingest(note("d", paragraphs(1, 2, 3)))
    before = mill.points("d")
    mill.ingest(note("d", paragraphs(1, 2, 4)))
    after = mill.points("d")
    assert "gate 3" in " ".join(point.text for point in before)
    assert "gate 3" not in " ".join(point.text for point in after)
    assert {point.id for point in before} & {point.id for point in after}


def test_a_replay_writes_the_same_points(mill: Mill) -> None:
    upload = note("d", paragraphs(1, 2, 3) + "\n\n" + paragraphs(1, 2, 3))
    mill.ingest(upload)
    before = mill.points("d")
    mill.ingest(upload)
    assert mill.points("d") == before
    assert len({point.id for point in before}) == len(before)


def test_a_delete_removes_every_point_and_nothing_else(mill: Mill) -> None:
    mill.ingest(note("gone", paragraphs(1, 2)), note("stays", paragraphs(1, 2)))
    topics = mill.ingest(DocumentUploaded.model_validate({"document_id": "gone", "op": "delete"}))
    (indexed,) = topics.on("documents.indexed")
    assert (indexed["op"], indexed["chunks"]) == ("delete", 0)
    assert mill.points("gone") == ()
    assert mill.points("stays") != ()


def test_versions_in_one_batch_end_with_the_last(mill: Mill) -> None:
    mill.ingest(*(note("d", f"Version {number} of the note.", job_id=f"j{number}") for number in range(8)))
    assert [point.text for point in mill.points("d")] == ["Version 7 of the note."]


def test_a_tenant_never_sees_the_documents_of_another(mill: Mill) -> None:
    mill.ingest(note("d", "The safe's number is 4711.", tenant="acme"), note("e", "Open at nine.", tenant="other"))
    assert "4711" in str(mill.ask("What is the safe's number?", tenant="acme")["text"])
    assert "4711" not in str(mill.ask("What is the safe's number?", tenant="other"))


def test_plain_generation_retrieves_nothing(mill: Mill) -> None:
    mill.ingest(note("d", "The safe's number is 4711."))
    assert mill.ask("What is the safe's number?", kind="generate")["citations"] == []


def test_a_result_accounts_for_tokens_and_time(mill: Mill) -> None:
    mill.ingest(note("d", "The safe's number is 4711."))
    result = mill.ask("What is the safe's number?")
    usage, timings = result["usage"], result["timings"]
    assert isinstance(usage, dict)
    assert isinstance(timings, dict)
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] > 0
    assert timings["retrieve_s"] > 0


def test_chunks_that_the_model_cannot_read_are_fatal_and_name_the_setting(embedder: Embedder) -> None:
    document = DocumentExtracted(job_id="j", document_id="d", text="text")
    with pytest.raises(Fatal, match="HEADRACE_CHUNK_TOKENS=1000"):
        chunk_document(document, embedder, ChunkPolicy(1000, 0))
