"""`headrace run` that kills itself: the same command, with connectors that know where they are.

VICTIM_KILL=POINT:N sends SIGKILL to this process at the N-th passage of a named point. Nothing in the product knows of
it: the points are reached by wrapping connectors and by subclassing the source's and sink's partitions.
"""

import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from random import Random
from threading import Lock

import numpy as np
import numpy.typing as npt
from bytewax.connectors.kafka import KafkaSink as StockSink
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from cli import main as cli_main
from cli import run, wiring
from cli.configuration import bootstrap_of
from connectors.embedder.port import Embedder, Tokenizer
from connectors.event_loop import EventLoop
from connectors.kafka import sink, source
from connectors.kafka.port import Delivered
from connectors.kafka.record import OutgoingRecord, Record
from connectors.ledger.port import Attempt, Claim, ClaimOutcome, Failure, JobRecord, Known, Ledger, Usage
from connectors.llm.port import LLM, Completion, Delta, Prompt
from connectors.settings import Settings, load
from connectors.vector_index.port import Point, VectorIndex
from tests.passing_index import PassingIndex

POINTS = (
    "after-claim",
    "after-inference",
    "after-ledger",
    "after-sink",
    "during-snapshot",
    "after-upsert",
    "after-show",
)
SNAPSHOT_S = 0.02  # in which a kill "during the snapshot" falls: bytewax writes its rows within some milliseconds


class Killer:
    """Counts passages and kills at the one that was chosen."""

    def __init__(self, plan: str, kills: Path) -> None:
        self._point, _, number = plan.partition(":")
        self._left = int(number or 0)
        self._kills = kills
        self._lock = Lock()

    def passing(self, point: str, job_id: str | None = None) -> None:
        """Die here, if it is time. `job_id`: whose claim, answer or commit it is."""
        if point != self._point:
            return
        with self._lock:
            self._left -= 1
            due = self._left == 0
        if due and point == "during-snapshot":
            delay_s = Random(os.getpid()).uniform(0.0, SNAPSHOT_S)
            threading.Timer(delay_s, self._die, [job_id]).start()
        elif due:
            self._die(job_id)

    def _die(self, job_id: str | None) -> None:
        with self._kills.open("a") as file:
            file.write(json.dumps({"point": self._point, "at": time.time(), "job_id": job_id}) + "\n")
        os.kill(os.getpid(), signal.SIGKILL)


class MortalLLM(LLM):
    """May die when the answer is complete, before anybody knows it."""

    def __init__(self, inner: LLM, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer
        self.model = inner.model

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        async for part in self._inner.stream(prompt):
            if isinstance(part, Completion):
                self._killer.passing("after-inference", prompt.job_id)
            yield part

    async def close(self) -> None:
        await self._inner.close()


class MortalLedger(Ledger):
    """May die after a claim and after a commit."""

    def __init__(self, inner: Ledger, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    async def claim(self, attempt: Attempt) -> ClaimOutcome:
        outcome = await self._inner.claim(attempt)
        if isinstance(outcome, Claim):
            self._killer.passing("after-claim", attempt.job_id)
        return outcome

    async def commit(self, claim: Claim, result: bytes, usage: Usage) -> bool:
        done = await self._inner.commit(claim, result, usage)
        self._killer.passing("after-ledger", claim.job_id)
        return done

    async def release(self, claim: Claim, *, failed: bool) -> bool:
        return await self._inner.release(claim, failed=failed)

    async def give_up(self, claim: Claim, failure: Failure) -> bool:
        return await self._inner.give_up(claim, failure)

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        await self._inner.mark_published(job_ids)

    async def find(self, job_id: str) -> JobRecord | None:
        return await self._inner.find(job_id)

    async def look(self, job_id: str) -> Known | None:
        return await self._inner.look(job_id)

    async def close(self) -> None:
        await self._inner.close()


class MortalIndex(PassingIndex):
    """May die after an upsert or a switch, before anything else knows of it."""

    def __init__(self, inner: VectorIndex, killer: Killer) -> None:
        super().__init__(inner)
        self._killer = killer

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        await super().upsert(collection, points)
        self._killer.passing("after-upsert")

    async def switch(
        self, collection: str, ids: Sequence[str], *, tenant: str, document_id: str, revision: int, keep: frozenset[str]
    ) -> None:
        await super().switch(collection, ids, tenant=tenant, document_id=document_id, revision=revision, keep=keep)
        self._killer.passing("after-show")


class Words(Tokenizer):
    """Words are tokens."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


class HashEmbedder(Embedder):
    """A vector by hash: starts at once, where a model takes seconds of each of a thousand restarts."""

    model: str = "hash-1"
    dimensions = 16
    max_tokens = 256
    tokenizer: Tokenizer = Words()

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = [np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype=np.uint8) for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), self.dimensions) + 1.0
        unit: npt.NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

    async def close(self) -> None:
        return None


class MortalConnectors(wiring.Connectors):
    """The product's own connectors, wrapped."""

    def __init__(self, settings: Settings, loop: EventLoop, owner: str, *, killer: Killer) -> None:
        super().__init__(settings, loop, owner)
        self._killer = killer

    def embedder(self, model: str | None = None) -> Embedder:
        if os.environ.get("VICTIM_EMBEDDER") == "real":
            return super().embedder(model)
        return HashEmbedder()

    @cached_property
    def ledger(self) -> Ledger:
        return MortalLedger(super().ledger, self._killer)

    @cached_property
    def llm(self) -> LLM:
        return MortalLLM(super().llm, self._killer)

    @cached_property
    def vectors(self) -> VectorIndex:
        return MortalIndex(super().vectors, self._killer)


def make_partitions_mortal(killer: Killer, flows: int) -> None:
    """Let the source's and the sinks' partitions pass their points, and say when the flows read their topics.

    "consuming": a first record has come. "reading": every flow has opened all its partitions.
    """
    flushed, positioned, asked = (
        sink._KafkaSinkPartition.snapshot,
        source._KafkaPartition.snapshot,
        source._KafkaPartition.next_batch,
    )
    said = False
    reading: set[str] = set()

    def after_flush(self: sink._KafkaSinkPartition) -> None:
        flushed(self)
        killer.passing("after-sink")

    def at_position(self: source._KafkaPartition) -> tuple[int, int]:
        killer.passing("during-snapshot")
        return positioned(self)

    def consuming(self: source._KafkaPartition) -> list[Record]:
        nonlocal said
        records = asked(self)
        flow = self._source._group_id
        if flow not in reading:
            reading.add(flow)
            if len(reading) == flows:
                print("reading", flush=True)
        if not said and records:
            said = True
            print("consuming", flush=True)
        return records

    sink._KafkaSinkPartition.snapshot = after_flush  # type: ignore[method-assign]
    source._KafkaPartition.snapshot = at_position  # type: ignore[method-assign]
    source._KafkaPartition.next_batch = consuming  # type: ignore[method-assign]


class _StockPartition(StatelessSinkPartition[tuple[str, Sequence[OutgoingRecord]]]):
    def __init__(self, inner: StatelessSinkPartition[KafkaSinkMessage[bytes | None, bytes | None]]) -> None:
        self._inner = inner

    def write_batch(self, items: list[tuple[str, Sequence[OutgoingRecord]]]) -> None:
        self._inner.write_batch(
            [
                KafkaSinkMessage(at.key, at.value, headers=list(at.headers), topic=at.topic)
                for _, records in items
                for at in records
            ]
        )

    def close(self) -> None:
        self._inner.close()


class StockKafkaSink(DynamicSink[tuple[str, Sequence[OutgoingRecord]]]):
    """Bytewax's own sink, in place of ours: shows that the checks notice what it loses."""

    def __init__(self, bootstrap: str) -> None:
        # As ours, it may wait for a broker; as ours, not for ever.
        self._inner = StockSink([bootstrap], None, {"message.timeout.ms": "3000"})

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _StockPartition:
        return _StockPartition(self._inner.build(step_id, worker_index, worker_count))


def main() -> None:
    """`headrace run` with the flows that the arguments name."""
    settings = load()
    killer = Killer(os.environ.get("VICTIM_KILL", ""), Path(os.environ.get("VICTIM_KILLS", os.devnull)))
    make_partitions_mortal(killer, flows=len(sys.argv) - 1)
    if os.environ.get("VICTIM_SINK") == "stock":

        def stock(self: wiring.KafkaTopics, delivered: Delivered | None = None) -> StockKafkaSink:
            del self, delivered
            return StockKafkaSink(bootstrap_of(settings))

        wiring.KafkaTopics.sink = stock  # type: ignore[assignment,method-assign]

    def connect(settings: Settings, loop: EventLoop, owner: str) -> MortalConnectors:
        return MortalConnectors(settings, loop, owner, killer=killer)

    run.run_flows = partial(run.run_flows, connect=connect)
    sys.argv.insert(1, "run")
    cli_main.main()


if __name__ == "__main__":
    main()
