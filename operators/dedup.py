"""Drop what was seen before: a quick, bounded memory of ids in front of whatever is slower and surer.

Guarantee: an id that is new is never taken for seen (ids are compared by 128 bits of their SHA-256). One that was seen
within half of `remember_s` is recognised, across restarts and changes of the worker count, unless its bucket has
overflowed since: then it is new again, which what stands behind must bear.

State, by hash bucket, in two steps. `recent` has the last few ids of a bucket, and is written with each snapshot in
which one was added; when they are enough for a segment, it hands them to `kept`, which has all others, in two
generations of which the older one is forgotten in time, and is written only then. One step for both would write all
ids again and again, or need a thousand buckets, each of which costs a call for each message and a row of each
snapshot (measured: a sixth of what an event cost in all). Never one key per id: bytewax keeps some 800 bytes for
each, and restores many of them slowly. An id costs about 20 bytes of memory and 16 of snapshot. Dead letters: none.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary
from zlib import crc32

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from operators.digests import Digests, digest_of, unpacked
from operators.envelope import Envelope
from schemas.errors import Fatal
from schemas.event import utc_now

X = TypeVar("X")

SNAPSHOT_VERSION = 1
_RESTORE_LOOK = timedelta(milliseconds=5)  # how soon messages that came before their bucket was restored are looked at

GenerationsSnapshot = tuple[
    int, float, bytes, bytes
]  # version, Unix time when the younger generation began, both generations


@dataclass(frozen=True)
class DedupPolicy:
    """How much is remembered, and for how long."""

    remember_s: float = 24 * 3600.0  # the younger half of it for certain
    buckets: int = 16
    segment_ids: int = 1024  # of a bucket, written with each snapshot until they are so many
    bucket_ids: int = 256 * 1024  # per generation: 8 million ids in all; beyond that the oldest are forgotten early


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
        self._younger = Digests()
        self._older = Digests()

    def add(self, digest: bytes, now: float) -> bool:
        """Remember an id; tells whether it is new. `now`: Unix seconds; a clock that steps back forgets nothing."""
        self.forget(now)
        if digest in self._younger:
            return False
        new = digest not in self._older
        self._younger.add(digest)  # seen again: remembered from now on
        return new

    def add_all(self, digests: Collection[bytes], now: float) -> None:
        """Remember so many."""
        self.forget(now)
        self._younger.update(digests)

    def forget(self, now: float) -> None:
        """What is too old, or too much."""
        age_s = now - self._began_at
        if age_s >= self._policy.remember_s:  # both generations are too old
            self._younger, self._older, self._began_at = Digests(), Digests(), now
        elif age_s >= self._policy.remember_s / 2 or len(self._younger) >= self._policy.bucket_ids:
            self._older, self._younger, self._began_at = self._younger, Digests(), now

    def has(self, digest: bytes, now: float) -> bool:
        """Whether the id is remembered, at that time."""
        self.forget(now)
        return digest in self

    def __contains__(self, digest: bytes) -> bool:
        """Whether the id is remembered."""
        return digest in self._younger or digest in self._older

    @property
    def snapshot(self) -> GenerationsSnapshot:
        """As the recovery state holds it."""
        return SNAPSHOT_VERSION, self._began_at, self._younger.packed, self._older.packed

    @classmethod
    def restored(cls, policy: DedupPolicy, snapshot: GenerationsSnapshot) -> "Generations":
        """From a snapshot. Raises Fatal if it is another release's."""
        version, began_at, younger, older = snapshot
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"dedup: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        generations = cls(policy, began_at)
        generations._younger = Digests(younger)
        generations._older = Digests(older)
        return generations


@dataclass(frozen=True)
class Segment:
    """Ids that are not recent any more."""

    bucket: str
    ids: frozenset[bytes]


class Judged(NamedTuple, Generic[X]):
    """A message, and whether it is new."""

    key: str
    envelope: Envelope[X]
    new: bool


KeptSnapshot = tuple[str, int, GenerationsSnapshot]  # bucket, how many segments it has taken, all their ids
RecentSnapshot = tuple[
    int, str, float, bytes, int, list[tuple[str, Any]]
]  # version, bucket, Unix time when it began, ids, how many segments it has handed on, messages that wait


class Kept(StatefulBatchLogic[Segment, object, KeptSnapshot]):
    """The ids of one bucket that are not recent any more."""

    def __init__(
        self, policy: DedupPolicy, clock: Callable[[], datetime], archive: "Archive", resume: KeptSnapshot | None
    ) -> None:
        self._clock = clock
        self._archive = archive
        self._bucket = ""
        self.segments = 0
        if resume is None:
            self.ids = Generations(policy, clock().timestamp())
        else:
            self._bucket, self.segments, ids = resume
            self.ids = Generations.restored(policy, ids)
            archive[self._bucket] = self

    def on_batch(self, values: list[Segment]) -> tuple[list[object], bool]:
        """Take up what `recent` has handed on."""
        if not self._bucket:
            self._bucket = values[0].bucket
            self._archive[self._bucket] = self
        now = self._clock().timestamp()
        for segment in values:
            self.ids.add_all(segment.ids, now)
        self.segments += len(values)
        return [], False

    def snapshot(self) -> KeptSnapshot:
        """As the recovery state holds it."""
        return self._bucket, self.segments, self.ids.snapshot


Archive = WeakValueDictionary[str, Kept]
"""What is kept, by bucket. Bytewax gives equal keys of two steps to one worker, so `recent` finds it here. Weakly: a
run that has ended leaves nothing to the next one in its process."""


class Recent(StatefulBatchLogic[tuple[str, Envelope[X]], Judged[X] | Segment, RecentSnapshot], Generic[X]):
    """The last ids of one bucket, and the judge of all messages: it looks into what is kept, too."""

    def __init__(
        self,
        policy: DedupPolicy,
        identity: Callable[[Envelope[X]], str],
        clock: Callable[[], datetime],
        archive: Archive,
        resume: RecentSnapshot | None,
    ) -> None:
        self._policy = policy
        self._identity = identity
        self._clock = clock
        self._archive = archive
        self._bucket = ""
        self._began_at = clock().timestamp()
        self._ids: set[bytes] = set()
        self._segments = 0
        self._underway: list[Segment] = []  # the last ones of these, which `kept` has not taken yet
        self._waiting: list[tuple[str, Envelope[X]]] = []  # until what is kept is restored
        if resume is not None:
            version, self._bucket, self._began_at, ids, self._segments, self._waiting = resume
            if version != SNAPSHOT_VERSION:
                raise Fatal(f"dedup: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
            self._ids = set(unpacked(ids))

    def on_batch(self, values: list[tuple[str, Envelope[X]]]) -> tuple[list[Judged[X] | Segment], bool]:
        """Judge each, in order; not before what is kept is restored."""
        self._bucket = self._bucket or bucket_of(values[0][0], self._policy)
        if self._waiting:
            self._waiting += values
            return [], False
        return self._judge(values), False

    def on_notify(self) -> tuple[list[Judged[X] | Segment], bool]:
        """Try those that wait."""
        waiting, self._waiting = self._waiting, []
        return self._judge(waiting), False

    def notify_at(self) -> datetime | None:
        """Soon, while some wait."""
        return datetime.now(UTC) + _RESTORE_LOOK if self._waiting else None

    def on_eof(self) -> tuple[list[Judged[X] | Segment], bool]:
        """The last chance; what still waits is in the snapshot."""
        return self.on_notify()

    def _judge(self, values: list[tuple[str, Envelope[X]]]) -> list[Judged[X] | Segment]:
        kept = self._archive.get(self._bucket)
        taken = 0 if kept is None else kept.segments
        while self._underway and self._segments - len(self._underway) < taken:
            del self._underway[0]
        if self._segments - len(self._underway) != taken:  # it is restored after this one
            self._waiting = values
            return []
        now = self._clock().timestamp()
        emitted: list[Judged[X] | Segment] = list(self._handed_on(now))
        for key, envelope in values:
            digest = digest_of(self._identity(envelope))
            new = digest not in self._ids
            if new:
                self._ids.add(digest)  # though it was seen earlier: remembered from now on
                new = not (any(digest in each.ids for each in self._underway) or (kept and kept.ids.has(digest, now)))
            emitted.append(Judged(key, envelope, new))
        return emitted

    def _handed_on(self, now: float) -> Iterator[Segment]:
        age_s = now - self._began_at
        if age_s >= self._policy.remember_s * 3 / 4:  # a segment grows for a quarter, so all of it is older than half
            self._ids, self._began_at = set(), now
        elif len(self._ids) >= self._policy.segment_ids or age_s >= self._policy.remember_s / 4:
            segment = Segment(self._bucket, frozenset(self._ids))
            self._ids, self._began_at = set(), now
            self._segments += 1
            self._underway.append(segment)
            yield segment

    def snapshot(self) -> RecentSnapshot:
        """As the recovery state holds it; what is underway is in that of `kept`, of the same epoch."""
        ids = b"".join(self._ids)
        return SNAPSHOT_VERSION, self._bucket, self._began_at, ids, self._segments, list(self._waiting)


def bucket_of(key: str, policy: DedupPolicy) -> str:
    """Where the ids of messages of that key are remembered."""
    return f"{crc32(key.encode()) % policy.buckets:04x}"


@operator
def dedup(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    identity: Callable[[Envelope[X]], str],
    policy: DedupPolicy,
    clock: Callable[[], datetime] = utc_now,
) -> Deduplicated[X]:
    """Part messages whose `identity` is new from those that repeat one. Equal ids must have equal keys."""
    archive: Archive = WeakValueDictionary()
    buckets = op.key_on("bucket", up, lambda keyed: bucket_of(keyed[0], policy))
    judged = op.stateful_batch("recent", buckets, lambda resume: Recent(policy, identity, clock, archive, resume))
    segments = op.flat_map_batch("segments", judged, _segments)
    op.stateful_batch("kept", segments, lambda resume: Kept(policy, clock, archive, resume))
    return Deduplicated(op.flat_map_batch("fresh", judged, _fresh), op.flat_map_batch("repeats", judged, _repeats))


_Emitted = list[tuple[str, Judged[X] | Segment]]


def _segments(emitted: _Emitted[X]) -> list[tuple[str, Segment]]:
    return [(bucket, each) for bucket, each in emitted if isinstance(each, Segment)]


def _fresh(emitted: _Emitted[X]) -> list[tuple[str, Envelope[X]]]:
    return [(each.key, each.envelope) for _, each in emitted if isinstance(each, Judged) and each.new]


def _repeats(emitted: _Emitted[X]) -> list[tuple[str, Envelope[X]]]:
    return [(each.key, each.envelope) for _, each in emitted if isinstance(each, Judged) and not each.new]


@operator
def once(
    step_id: str,
    up: KeyedStream[Envelope[X]],
    identity: Callable[[Envelope[X]], str],
    policy: DedupPolicy,
) -> KeyedStream[Envelope[X]]:
    """What is new of the messages; repeats go nowhere, so they must say nothing that the first has not said."""
    return dedup("dedup", op.map("identify", up, lambda keyed: (identity(keyed[1]), keyed[1])), identity, policy).fresh
