"""What is too large for Kafka goes by reference and comes back as it was."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.object_store import ObjectStore
from operators.claim_check import INLINE_CHUNKS_MAX_BYTES, check_in_event, check_out_event
from schemas.documents import INLINE_TEXT_MAX_CHARS, DocumentEmbedded, DocumentExtracted, EmbeddedChunk
from schemas.errors import Poison


def extracted(text: str) -> DocumentExtracted:
    return DocumentExtracted(job_id="j", document_id="d", text=text, title="T")


def embedded(chunks: int) -> DocumentEmbedded:
    made = tuple(EmbeddedChunk(chunk_id=f"c{n}", ordinal=n, text="é" * 500, vector=bytes(1536)) for n in range(chunks))
    return DocumentEmbedded(job_id="j", document_id="d", model="m", dimensions=384, chunks=made)


def test_a_small_event_stays_as_it_is(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    text, chunks = extracted("short"), embedded(2)
    assert asyncio.run(check_in_event(text, store)) == text
    assert asyncio.run(check_in_event(chunks, store)) == chunks
    assert list(tmp_path.iterdir()) == []


def test_a_large_text_fits_into_kafka_and_comes_back_equal(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    event = extracted("\U0001f600" * (INLINE_TEXT_MAX_CHARS + 1))
    checked_in = asyncio.run(check_in_event(event, store)).encode()
    assert len(checked_in) < 2_000
    assert asyncio.run(check_out_event(DocumentExtracted.model_validate_json(checked_in), store)) == event


def test_many_chunks_fit_into_kafka_and_come_back_equal(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    event = embedded(2_000)
    checked_in = asyncio.run(check_in_event(event, store)).encode()
    assert len(checked_in) < 2_000
    assert asyncio.run(check_out_event(DocumentEmbedded.model_validate_json(checked_in), store)) == event


@given(size=st.integers(0, 200))
def test_no_event_of_chunks_exceeds_the_message_limit(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    store = ObjectStore(str(tmp_path_factory.mktemp("objects")))
    assert len(asyncio.run(check_in_event(embedded(size), store)).encode()) < INLINE_CHUNKS_MAX_BYTES + 2_000


def test_an_object_that_is_gone_is_poison_that_names_it(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    event = asyncio.run(check_in_event(embedded(2_000), store))
    for file in tmp_path.rglob("*.json"):
        file.unlink()
    with pytest.raises(Poison, match="claims/"):
        asyncio.run(check_out_event(event, store))


def test_an_object_that_was_tampered_with_is_poison(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    event = asyncio.run(check_in_event(embedded(2_000), store))
    for file in tmp_path.rglob("*.json"):
        file.write_text("[{}]")
    with pytest.raises(Poison, match="not a JSON array of chunks"):
        asyncio.run(check_out_event(event, store))
