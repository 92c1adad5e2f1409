"""Callbacks held back until their time has come, and until their receiver has room.

Guarantee: what comes in goes out once: when it is due and a place is free (`operators.places`), the longest due first;
across restarts. One that was redriven is due at once. Of a callback that comes twice, as a crash makes it, one is held.
A receiver that is slow or gone holds up its own callbacks alone.

State: hash buckets, each with what it holds, packed; an empty one is forgotten. Dead letters: what is more than a
tenant may have held back; what is too large to be tried again. Neither ends its job, which has ended already.
"""

import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit
from zlib import crc32

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from connectors.kafka.record import Record
from operators.decode import decode
from operators.deliver import CALLBACKS
from operators.envelope import Envelope
from operators.outcome import Outcome, bury, flow_step, not_the_end
from operators.places import Places
from schemas.callbacks import CallbackDeferred
from schemas.dead_letter import DeadLetter, redrives
from schemas.errors import Fatal, GaveUp, Poison
from schemas.event import at_unix, utc_now
from schemas.topics import EVENT_MAX_BYTES

LONGEST_S = 24 * 3600.0  # whatever a callback says: anybody may write one
LARGEST_BYTES = EVENT_MAX_BYTES - 32 * 1024  # of a callback: another attempt is written with its failure
OVERHEAD_BYTES = 500  # of one in the state, besides its message
LOOK = timedelta(milliseconds=50)  # how soon a bucket looks for places; doubled while there are none ...
LOOK_CAP = timedelta(seconds=2)  # ... since each look is a snapshot of the bucket
SNAPSHOT_VERSION = 1


@dataclass(frozen=True)
class HoldPolicy:
    """How much is held back."""

    buckets: int = 64  # what awakes is written to the recovery state whole: so a sixty-fourth of all
    tenant_bytes: int = 16 * 1024 * 1024  # packed, of one tenant; one callback in each bucket is always held

    @property
    def bucket_bytes(self) -> int:
        """Of one tenant in one bucket: callbacks spread evenly."""
        return self.tenant_bytes // self.buckets


_Plain = tuple[float, str, str, str, str, int, int, bytes | None, bytes, tuple[tuple[str, bytes], ...], datetime]
_Snapshot = tuple[int, list[_Plain]]


@dataclass(frozen=True)
class _Held:
    """One callback, as small as it gets: it may be held for half a day."""

    due: float  # Unix seconds
    name: str
    tenant: str
    host: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    packed: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp: datetime

    @classmethod
    def of(cls, envelope: Envelope[CallbackDeferred], now: float) -> "_Held":
        callback, record = envelope.body, envelope.record
        at_once = callback.attempts == 0 or redrives(record.headers)
        due = now if at_once else min(callback.not_before.timestamp(), now + LONGEST_S)
        return cls(
            due,
            callback.callback_id,
            callback.tenant,
            _host(callback.url),
            record.topic,
            record.partition,
            record.offset,
            record.key,
            zlib.compress(record.value or b""),
            record.headers,
            record.timestamp,
        )

    @property
    def plain(self) -> _Plain:
        return (
            *(self.due, self.name, self.tenant, self.host, self.topic, self.partition, self.offset),
            *(self.key, self.packed, self.headers, self.timestamp),
        )

    @property
    def record(self) -> Record:
        return Record(
            self.topic,
            self.partition,
            self.offset,
            self.key,
            zlib.decompress(self.packed),
            self.headers,
            self.timestamp,
        )

    @property
    def size_bytes(self) -> int:
        return len(self.packed) + OVERHEAD_BYTES


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class _Bucket(StatefulBatchLogic[Envelope[CallbackDeferred], Record | DeadLetter, _Snapshot]):
    """A part of the callbacks, of any tenant."""

    def __init__(
        self,
        step: str,
        places: Places,
        policy: HoldPolicy,
        clock: Callable[[], datetime],
        resume: _Snapshot | None,
    ) -> None:
        self._step = step
        self._places = places
        self._policy = policy
        self._clock = clock
        self._held: dict[str, _Held] = {}  # by name
        self._look = LOOK
        self._look_at: datetime | None = None
        if resume is None:
            return
        version, plain = resume
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"{step}: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        self._held = {held.name: held for held in (_Held(*each) for each in plain)}
        self._look_at = clock() if plain else None

    def on_batch(self, values: list[Envelope[CallbackDeferred]]) -> tuple[list[Record | DeadLetter], bool]:
        emitted: list[Record | DeadLetter] = []
        now = self._clock().timestamp()
        new: dict[str, Envelope[CallbackDeferred]] = {}
        for envelope in values:
            if len(envelope.record.value or b"") > LARGEST_BYTES:
                emitted.append(self._buried(envelope, Poison(f"the callback is larger than {LARGEST_BYTES:,} bytes")))
                continue
            held = _Held.of(envelope, now)
            former = self._held.get(held.name)
            if former is None or held.due < former.due:
                self._held[held.name] = held
                new[held.name] = envelope
        self._look = LOOK / 2  # what has come may go to a quick receiver, whatever the others wait for
        emitted += self._release()
        emitted += self._overflow(new)
        return emitted, not self._held

    def on_notify(self) -> tuple[list[Record | DeadLetter], bool]:
        return list(self._release()), not self._held

    def _release(self) -> list[Record]:
        """Let go what is due and has a place; and decide when to look again."""
        now = self._clock()
        due = sorted((each for each in self._held.values() if each.due <= now.timestamp()), key=lambda each: each.due)
        released = [
            self._held.pop(each.name).record
            for each in due
            if self._places.take(each.name, tenant=each.tenant, host=each.host)
        ]
        self._look = LOOK if released else min(self._look * 2, LOOK_CAP)
        moments = [at_unix(each.due) for each in self._held.values() if each.due > now.timestamp()]
        if len(due) > len(released):
            moments.append(now + self._look * random.uniform(0.5, 1.0))  # noqa: S311  # not all buckets at once
        self._look_at = min(moments, default=None)
        return released

    def _overflow(self, new: dict[str, Envelope[CallbackDeferred]]) -> Iterator[DeadLetter]:
        """Bury what is new and too much."""
        used: Counter[str] = Counter()
        for each in self._held.values():
            used[each.tenant] += each.size_bytes
        for each in [self._held[name] for name in new if name in self._held]:
            is_alone = used[each.tenant] == each.size_bytes
            if used[each.tenant] > self._policy.bucket_bytes and not is_alone:
                used[each.tenant] -= each.size_bytes
                del self._held[each.name]
                full = f"tenant {each.tenant} has {self._policy.tenant_bytes:,} bytes of callbacks held back already"
                why = f"{full}: see to its receivers, and redrive this"
                yield self._buried(new[each.name], GaveUp(why))

    def _buried(self, envelope: Envelope[CallbackDeferred], error: Exception) -> DeadLetter:
        CALLBACKS.labels("dead_lettered").inc()
        attempts = max(envelope.body.attempts, 1)
        return not_the_end(
            bury(
                envelope.job,
                envelope.record,
                error,
                step=self._step,
                attempts=attempts,
                received_at=envelope.received_at,
            )
        )

    def notify_at(self) -> datetime | None:
        return self._look_at

    def snapshot(self) -> _Snapshot:
        return SNAPSHOT_VERSION, [each.plain for each in self._held.values()]


def _record(item: object) -> Record | None:
    return item if isinstance(item, Record) else None


def _letter(item: object) -> DeadLetter | None:
    return item if isinstance(item, DeadLetter) else None


@operator
def hold(
    step_id: str,
    up: KeyedStream[Envelope[CallbackDeferred]],
    places: Places,
    policy: HoldPolicy = HoldPolicy(),  # frozen
    clock: Callable[[], datetime] = utc_now,
) -> Outcome[CallbackDeferred]:
    """Let each callback go when it is due and a place is free; whoever makes the call gives the place back."""
    step = flow_step(step_id)

    def bucket(keyed: tuple[str, Envelope[CallbackDeferred]]) -> tuple[str, Envelope[CallbackDeferred]]:
        return f"{crc32(keyed[1].body.callback_id.encode()) % policy.buckets:02x}", keyed[1]

    buckets = op.map("bucket", up, bucket)
    held = op.stateful_batch("work", buckets, lambda resume: _Bucket(step, places, policy, clock, resume))
    released = op.key_rm("released", op.filter_map_value("record", held, _record))
    again = decode("decode", released, CallbackDeferred)
    overflow = op.map(
        "letter", op.filter_map_value("letters", held, _letter), lambda keyed: (keyed[1].job_id, keyed[1])
    )
    return Outcome(again.oks, op.merge("errs", again.errs, overflow))
