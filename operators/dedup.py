"""Drop what was seen before: a quick, bounded memory of ids in front of whatever is slower and surer.

Guarantee: an id that is new is never taken for seen (ids are compared by 128 bits of their SHA-256). One that was seen
within half of `remember_s` is recognised, across restarts and changes of the worker count, unless its bucket has
overflowed since: then it is new again, which what stands behind must bear.

State: hash buckets, each two generations of digests; the older one is forgotten when the younger is half of
`remember_s` old, or full. Never one key per id: bytewax keeps some 800 bytes for each, and restores many of them
slowly. An id costs about 90 bytes of memory and 16 of snapshot. Dead letters: none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Generic, TypeVar
from zlib import crc32

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from operators.envelope import Envelope
from schemas.errors import Fatal
from schemas.event import utc_now

X = TypeVar("X")

DIGEST_BYTES = 16
SNAPSHOT_VERSION = 1

GenerationsSnapshot = tuple[
    int, float, bytes, bytes
]  # version, Unix time when the younger generation began, both generations


@dataclass(frozen=True)
class DedupPolicy:
    """How much is remembered, and for how long."""

    remember_s: float = 24 * 3600.0  # the younger half of it for certain
    buckets: int = 4096  # keys of the state: 256 for each of 16 recovery partitions, which restore in a second
    bucket_ids: int = 2048  # per generation: 8 million ids in all; beyond that the oldest are forgotten early


@dataclass(frozen=True)
class Deduplicated(Generic[X]):
    """What is new, and what has come before. Both must be consumed."""

    fresh: KeyedStream[Envelope[X]]
    repeats: KeyedStream[Envelope[X]]


class Generations:
    """The ids of one bucket."""

    def __init__(self, policy: DedupPolicy, began_at: float) -> None:
        self._policy = policy
        self._began_at = began_at
        self._younger: set[bytes] = set()
        self._older: set[bytes] = set()

    def add(self, digest: bytes, now: float) -> bool:
        """Remember an id; tells whether it is new. `now`: Unix seconds; a clock that steps back forgets nothing."""
        age_s = now - self._began_at
        if age_s >= self._policy.remember_s:  # both generations are too old
            self._younger, self._older, self._began_at = set(), set(), now
        elif age_s >= self._policy.remember_s / 2 or len(self._younger) >= self._policy.bucket_ids:
            self._older, self._younger, self._began_at = self._younger, set(), now
        if digest in self._younger:
            return False
        new = digest not in self._older
        self._younger.add(digest)  # seen again: remembered from now on
        return new

    def __contains__(self, digest: bytes) -> bool:
        """Whether the id is remembered."""
        return digest in self._younger or digest in self._older

    @property
    def snapshot(self) -> GenerationsSnapshot:
        """As the recovery state holds it."""
        return SNAPSHOT_VERSION, self._began_at, b"".join(self._younger), b"".join(self._older)

    @classmethod
    def restored(cls, policy: DedupPolicy, snapshot: GenerationsSnapshot) -> "Generations":
        """From a snapshot. Raises Fatal if it is another release's."""
        version, began_at, younger, older = snapshot
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"dedup: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        generations = cls(policy, began_at)
        generations._younger = _digests(younger)
        generations._older = _digests(older)
        return generations


def _digests(packed: bytes) -> set[bytes]:
    return {packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)}


class _Bucket(
    StatefulBatchLogic[tuple[str, Envelope[X]], tuple[bool, str, Envelope[X]], GenerationsSnapshot], Generic[X]
):
    def __init__(
        self,
        policy: DedupPolicy,
        identity: Callable[[Envelope[X]], str],
        clock: Callable[[], datetime],
        resume: GenerationsSnapshot | None,
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._ids = Generations(policy, clock().timestamp()) if resume is None else Generations.restored(policy, resume)

    def on_batch(self, values: list[tuple[str, Envelope[X]]]) -> tuple[list[tuple[bool, str, Envelope[X]]], bool]:
        now = self._clock().timestamp()
        emitted = [(self._ids.add(digest_of(self._identity(envelope)), now), key, envelope) for key, envelope in values]
        return emitted, False

    def snapshot(self) -> GenerationsSnapshot:
        return self._ids.snapshot


def digest_of(identity: str) -> bytes:
    """What is remembered of an id."""
    return sha256(identity.encode("utf-8", errors="surrogatepass")).digest()[:DIGEST_BYTES]


@operator
def dedup(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    identity: Callable[[Envelope[X]], str],
    policy: DedupPolicy,
    clock: Callable[[], datetime] = utc_now,
) -> Deduplicated[X]:
    """Part messages whose `identity` is new from those that repeat one. Equal ids must have equal keys."""
    names = [f"{number:04x}" for number in range(policy.buckets)]

    def bucket(keyed: tuple[str, Envelope[X]]) -> str:
        return names[crc32(keyed[0].encode()) % policy.buckets]

    buckets = op.key_on("bucket", up, bucket)
    judged = op.stateful_batch("work", buckets, lambda resume: _Bucket(policy, identity, clock, resume))
    return Deduplicated(op.filter_map("fresh", judged, _fresh), op.filter_map("repeats", judged, _repeat))


_Judged = tuple[str, tuple[bool, str, Envelope[X]]]


def _fresh(item: _Judged[X]) -> tuple[str, Envelope[X]] | None:
    new, key, envelope = item[1]
    return (key, envelope) if new else None


def _repeat(item: _Judged[X]) -> tuple[str, Envelope[X]] | None:
    new, key, envelope = item[1]
    return None if new else (key, envelope)


@operator
def once(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    identity: Callable[[Envelope[X]], str],
    policy: DedupPolicy,
) -> KeyedStream[Envelope[X]]:
    """What is new of the messages; repeats go nowhere, so they must say nothing that the first has not said."""
    return dedup("dedup", op.map("identify", up, lambda keyed: (identity(keyed[1]), keyed[1])), identity, policy).fresh
