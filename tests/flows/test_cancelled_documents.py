"""An upload that is cancelled ends where it is, and what readers find stays a whole version."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from bytewax.errors import BytewaxRuntimeError

from schemas.cancellations import CancelRequested
from schemas.documents import DocumentUploaded
from schemas.errors import Fatal
from schemas.jobs import JobState
from tests.flows.mill import Mill
from tests.memory_topics import MemoryTopics


def upload(job_id: str, text: str, *, revision: int = 1) -> DocumentUploaded:
    fields = {"job_id": job_id, "document_id": "d", "text": text, "revision": revision}
    return DocumentUploaded.model_validate(fields)


def cancel(mill: Mill, job_id: str) -> None:
    mill.cancellations.add(CancelRequested(job_id=job_id, reason="a mistake"))


def ends(topics: MemoryTopics, job_id: str) -> list[tuple[JobState, str | None]]:
    told = [status for status in topics.statuses() if status.job_id == job_id and status.state.terminal]
    return [(status.state, status.detail) for status in told]


def test_an_upload_that_was_cancelled_before_it_is_read_is_not_indexed_and_others_are(mill: Mill) -> None:
    cancel(mill, "unwanted")
    topics = mill.ingest(upload("unwanted", "Two.", revision=2), upload("wanted", "One."))
    assert ends(topics, "unwanted") == [(JobState.CANCELLED, "a mistake")]
    assert ends(topics, "wanted") == [(JobState.COMPLETED, None)]
    assert mill.texts("d") == ["One."]
    assert topics.dead_letters() == []


def test_an_upload_that_is_cancelled_while_it_is_embedded_leaves_the_former_version(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill.ingest(upload("former", "One."))

    async def hang(texts: Sequence[str]) -> object:
        del texts
        cancel(mill, "j")
        return await asyncio.Event().wait()

    with monkeypatch.context() as hanging:
        hanging.setattr(mill.embedder, "embed", hang)
        topics = mill.ingest(upload("j", "Two.", revision=2))
    assert ends(topics, "j") == [(JobState.CANCELLED, "a mistake")]
    assert topics.on("documents.indexed") == []
    assert mill.texts("d") == ["One."]


def test_a_version_that_is_cancelled_while_it_is_written_is_written_whole(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill.ingest(upload("former", "One."))
    switch = mill.vectors.switch

    async def switch_and_cancel(*arguments: Any, **fields: Any) -> None:
        await switch(*arguments, **fields)
        cancel(mill, "j")
        await asyncio.sleep(0.05)  # the cancellation is known

    monkeypatch.setattr(mill.vectors, "switch", switch_and_cancel)
    topics = mill.ingest(upload("j", "Two.", revision=2))
    assert ends(topics, "j") == [(JobState.COMPLETED, None)]
    assert mill.texts("d") == ["Two."]


def test_a_version_whose_flow_died_after_the_switch_and_that_is_cancelled_then_is_the_only_one(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill.ingest(upload("former", "One."))
    switch = mill.vectors.switch

    async def switch_and_die(*arguments: Any, **fields: Any) -> None:
        await switch(*arguments, **fields)
        raise Fatal("the flow dies")

    with monkeypatch.context() as dying:
        dying.setattr(mill.vectors, "switch", switch_and_die)
        with pytest.raises(BytewaxRuntimeError):
            mill.ingest(upload("j", "Two.", revision=2))
    cancel(mill, "j")
    assert ends(mill.ingest(), "j") == [(JobState.CANCELLED, "a mistake")]
    assert mill.texts("d") == ["Two."]
