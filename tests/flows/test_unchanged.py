"""Uploads of what is indexed already: left out where that is certain, done where it is not."""

import hashlib
from pathlib import Path

from operators.chunk import ChunkPolicy
from schemas.documents import DocumentUploaded
from tests.flows.mill import Mill


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
