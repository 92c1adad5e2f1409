"""Large payloads by reference, at the boundary where a flow is split by Kafka.

Guarantee: an event checked in fits into a Kafka message, and checked out again equals what it was. Objects are named
by their content, so a replay writes the same object. State: offload's pending events. Dead letters: an object that is
gone.
"""

import hashlib
from typing import TypeVar

from bytewax.dataflow import operator
from bytewax.operators import KeyedStream
from pydantic import TypeAdapter, ValidationError

from connectors.object_store import ObjectStore
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.documents import INLINE_TEXT_MAX_CHARS, DocumentEmbedded, DocumentExtracted, EmbeddedChunk
from schemas.errors import Poison

INLINE_CHUNKS_MAX_BYTES = 256 * 1024  # of JSON; a quarter of the usual 1 MB message limit
MAX_OBJECT_BYTES = 1_000_000_000  # of one document's chunks: 50 MB of text make about 150 MB
CLAIM_CHECK = OffloadPolicy(capacity=16, backlog=16, timeout_s=60.0, keep_key_order=True)

_CHUNKS = TypeAdapter(tuple[EmbeddedChunk, ...])

E = TypeVar("E", DocumentExtracted, DocumentEmbedded)


async def check_in_event(event: E, store: ObjectStore) -> E:
    """Move a large text, or many chunks, into the object store."""
    if isinstance(event, DocumentExtracted):
        if event.text is None or len(event.text) <= INLINE_TEXT_MAX_CHARS:
            return event
        uri = await _deposit(event.text.encode(), "txt", store)
        return event.model_copy(update={"text": None, "text_uri": uri})
    if event.chunks is None:
        return event
    payload = _CHUNKS.dump_json(event.chunks)
    if len(payload) <= INLINE_CHUNKS_MAX_BYTES:
        return event
    return event.model_copy(update={"chunks": None, "chunks_uri": await _deposit(payload, "json", store)})


async def check_out_event(event: E, store: ObjectStore) -> E:
    """Bring back what was moved."""
    if isinstance(event, DocumentExtracted):
        if event.text_uri is None:
            return event
        text = (await store.read(event.text_uri, max_bytes=MAX_OBJECT_BYTES)).decode()
        return event.model_copy(update={"text": text, "text_uri": None})
    if event.chunks_uri is None:
        return event
    payload = await store.read(event.chunks_uri, max_bytes=MAX_OBJECT_BYTES)
    try:
        chunks = _CHUNKS.validate_json(payload)
    except ValidationError as error:
        raise Poison(f"{event.chunks_uri} is not a JSON array of chunks: {error.error_count()} faults") from error
    return event.model_copy(update={"chunks": chunks, "chunks_uri": None})


async def _deposit(payload: bytes, suffix: str, store: ObjectStore) -> str:
    return await store.write(f"claims/{hashlib.sha256(payload).hexdigest()}.{suffix}", payload)


@operator
def check_in(
    step_id: str, up: KeyedStream[Envelope[E]], event: type[E], store: ObjectStore, runtime: Runtime
) -> Outcome[E]:
    """Make each event small enough for Kafka."""

    async def work(envelope: Envelope[E]) -> E:
        return await check_in_event(envelope.body, store)

    return offload("work", up, work, body=event, policy=CLAIM_CHECK, runtime=runtime)


@operator
def check_out(
    step_id: str, up: KeyedStream[Envelope[E]], event: type[E], store: ObjectStore, runtime: Runtime
) -> Outcome[E]:
    """Make each event whole again."""

    async def work(envelope: Envelope[E]) -> E:
        return await check_out_event(envelope.body, store)

    return offload("work", up, work, body=event, policy=CLAIM_CHECK, runtime=runtime)
