"""Read topics so that nothing is skipped: positions come from the recovery snapshots, and only from them.

Guarantee: every record from the resume position on is emitted, in order within its partition. Where a position has
fallen out of the topic (retention, a recreated topic), the flow stops and says so; it never skips to the end.

With no snapshot a partition begins at `start`, "earliest" by default. Offsets committed to the consumer group are never
read: they exist so that lag tools and autoscalers see how far the flow is. What is committed is the position of the
snapshot before the last one, which bytewax has made durable before it asks for the next: the group never claims more
than a restart would resume from.

All partitions that this process reads share one consumer. Measured with 16 partitions on one broker: 4 threads, 2
connections and 1 MB, against 64 threads, 32 connections and 11 MB with a consumer each, which is what librdkafka's
prefetch buffers would multiply as well. The price is a buffer per partition between the two, bounded by pausing.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import structlog
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import TopicMetadata  # type: ignore[attr-defined]  # its documented name, not exported

from connectors.kafka.client import TRANSIENT, ConnectionErrors, base_config, cause, record_of, watermarks
from connectors.kafka.epochs import LOOK, QUIET_LOOK, Epochs
from connectors.kafka.pressure import Pressure
from connectors.kafka.progress import Place, Progress
from connectors.kafka.record import Record
from connectors.kafka.stop import Stop
from schemas.errors import Fatal, Retryable

log = structlog.get_logger()

Position = tuple[int, int]  # version of this layout, offset of the next record: what a snapshot holds

_VERSION = 1
_TIMEOUT_S = 10.0  # for metadata at the start; within the 15 s in which a start on an unreachable broker must fail
_RETRY_S = 0.1
_LOOKS_UNTIL_QUIET = 50  # in vain: a second
_SAME_LOOK_S = 0.002  # idle partitions are looked at one after the other: what the first did not find, is not there
CLOSE_S = 5.0  # a broker that is there answers in milliseconds
_BUFFER_BYTES = 2 * 1024 * 1024  # per partition; reached only by one that waits for its next epoch
_EPOCH_BYTES = 64 * 1024 * 1024
_RECORD_OVERHEAD_BYTES = 1000  # a Record's own objects


def _size(record: Record) -> int:
    return _RECORD_OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"")


class _Taken(NamedTuple):
    """What the flow takes at once."""

    records: list[Record]
    bytes: int


class _Buffer:
    """Records of one partition that the shared consumer has read and the flow has not taken."""

    def __init__(self, next_offset: int) -> None:
        self.records: deque[Record] = deque()
        self.bytes = 0
        self.next_offset = next_offset  # of the next record to put in
        self.paused = False
        self.committed: int | None = None

    def put(self, record: Record) -> None:
        if record.offset < self.next_offset:  # fetched again after a pause
            return
        self.next_offset = record.offset + 1
        self.records.append(record)
        self.bytes += _size(record)

    def take(self, limit: int) -> "_Taken":
        taken = [self.records.popleft() for _ in range(min(limit, len(self.records)))]
        size = sum(map(_size, taken))
        self.bytes -= size
        return _Taken(taken, size)


class _SharedConsumer:
    """One librdkafka consumer for the partitions of a source that this process reads. Thread-safe.

    It assigns and never subscribes, so that bytewax alone decides who reads what and nothing rebalances.
    """

    def __init__(self, bootstrap: str, config: Mapping[str, str], group_id: str) -> None:
        self._bootstrap = bootstrap
        self._lock = threading.Lock()
        self._buffers: dict[Place, _Buffer] = {}
        self._empty_until = 0.0
        self._consumer = Consumer(
            {
                "queued.min.messages": "1000",  # librdkafka's 100,000 would prefetch far more than an epoch takes
                "queued.max.messages.kbytes": "16384",
                # How long librdkafka leaves a partition alone of which it has enough: its 1,000 ms and an epoch's worth
                # together would be the speed of a quick flow, whose worker waited for a third of its time.
                "fetch.queue.backoff.ms": "20",
                **base_config(bootstrap, config, ConnectionErrors(f"source {group_id}")),
                "group.id": group_id,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "on_commit": self._on_commit,
            }
        )

    def partitions(self, topics: Sequence[str]) -> list[Place]:
        """Every partition of `topics`; Retryable if no broker answers, Fatal if a topic is missing."""
        found: list[Place] = []
        for topic in topics:
            metadata = self._metadata(topic)
            if metadata.error is not None or not metadata.partitions:
                reason = "" if metadata.error is None else f" ({metadata.error.str()})"
                raise Fatal(
                    f"topic {topic} cannot be read at {self._bootstrap}{reason}; create it: headrace topics create"
                )
            found += [(topic, partition) for partition in sorted(metadata.partitions)]
        return found

    def _metadata(self, topic: str) -> TopicMetadata:
        """What the brokers say about a topic, once it is more than a moment's trouble."""
        until = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                metadata: TopicMetadata = self._consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
            except KafkaException as error:
                raise self._unreachable(error) from error
            if metadata.error is None or metadata.error.code() not in TRANSIENT or time.monotonic() > until:
                return metadata
            time.sleep(_RETRY_S)

    def watermarks(self, place: Place) -> tuple[int, int]:
        """First offset kept, and the one after the last; Retryable if no broker answers."""
        try:
            return watermarks(self._consumer, TopicPartition(*place), timeout_s=_TIMEOUT_S)
        except KafkaException as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: KafkaException) -> Retryable:
        return Retryable(
            f"Kafka at {self._bootstrap} did not answer within {_TIMEOUT_S:.0f} s: {cause(error).str()}; "
            "check the bootstrap address, and that the broker runs"
        )

    def add(self, place: Place, offset: int) -> None:
        """Begin to read `place` at `offset`."""
        with self._lock:
            self._buffers[place] = _Buffer(offset)
            self._consumer.incremental_assign([TopicPartition(*place, offset)])

    def take(self, place: Place, limit: int) -> tuple[_Taken, bool]:
        """Up to `limit` records of `place`, without waiting; and whether any partition got something new.

        Raises Fatal where only a person can help.
        """
        with self._lock:
            buffer = self._buffers[place]
            arrived = not buffer.records and self._fill(limit)
            if not buffer.records:
                return _Taken([], 0), arrived
            taken = buffer.take(limit)
            if buffer.paused and not buffer.records:
                buffer.paused = False
                self._consumer.resume([TopicPartition(*place)])
            return taken, arrived

    def _fill(self, limit: int) -> bool:
        now = time.monotonic()
        if now < self._empty_until:
            return False
        messages = self._consumer.consume(limit, timeout=0)
        if not messages:
            self._empty_until = now + _SAME_LOOK_S
        touched: set[Place] = set()
        for message in messages:
            error = message.error()
            if error is not None:
                self._wait_out_or_raise(message, error)
                continue
            record = record_of(message)
            place = (record.topic, record.partition)
            if place in self._buffers:  # not so for what was still on its way when the partition was removed
                self._buffers[place].put(record)
                touched.add(place)
        for place in touched:
            buffer = self._buffers[place]
            if buffer.bytes > _BUFFER_BYTES and not buffer.paused:
                buffer.paused = True
                self._consumer.pause([TopicPartition(*place)])
        return bool(messages)

    def _wait_out_or_raise(self, message: Message, error: KafkaError) -> None:
        topic, partition = message.topic(), message.partition()
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001  # librdkafka's own codes are spelled so
            raise Fatal(
                f"{topic}/{partition}: offset {message.offset()}, where the flow must resume, is not in the topic at "
                f"{self._bootstrap}: its records were deleted before they were read, or the topic was made anew. To "
                "accept the gap, move the flow's recovery directory aside: it then begins at the earliest record"
            )
        if error.code() not in TRANSIENT:
            raise Fatal(f"{topic}/{partition} cannot be read at {self._bootstrap}: {error.str()} ({error.name()})")
        log.warning("kafka read failed; waiting", topic=topic, partition=partition, error=error.str())

    def commit(self, place: Place, offset: int) -> None:
        """Show `offset` as the group's position, without waiting. A failure is a warning: only lag tools see it."""
        with self._lock:
            buffer = self._buffers[place]
            if buffer.committed == offset:
                return
            buffer.committed = offset
            try:
                self._consumer.commit(offsets=[TopicPartition(*place, offset)], asynchronous=True)
            except KafkaException as error:
                self._on_commit(cause(error), [TopicPartition(*place, offset)])

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """Called by librdkafka from within consume, so under the lock."""
        for committed in offsets:
            failure = error or committed.error
            if failure is None:
                continue
            log.warning(
                "offset not committed; lag looks larger than it is",
                topic=committed.topic,
                partition=committed.partition,
                error=failure.str(),
            )
            buffer = self._buffers.get((committed.topic, committed.partition))
            if buffer is not None:
                buffer.committed = None  # so that the next snapshot tries again, even if nothing more arrived

    def remove(self, place: Place) -> bool:
        """Read `place` no more; tells whether it was the last, after which this consumer is closed."""
        with self._lock:
            del self._buffers[place]
            with suppress(KafkaException):  # bytewax closes while it unwinds, where to raise aborts the process
                if self._buffers:
                    self._consumer.incremental_unassign([TopicPartition(*place)])
                else:
                    self._close()
            return not self._buffers

    def _close(self) -> None:
        """Close, for CLOSE_S at most: with a commit on its way to a broker that is gone librdkafka waits for ever."""

        def close() -> None:
            with suppress(KafkaException, RuntimeError):
                self._consumer.close()

        closing = threading.Thread(target=close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class KafkaSource(FixedPartitionedSource[Record, Position]):
    """Records of `topics`; one bytewax partition, named "topic/partition", for each of theirs.

    Partitions are listed once, at the start: after adding some, restart the flow.

    - `bootstrap`: address of one or more brokers.
    - `topics`: must exist.
    - `group_id`: under which lag is visible. Nothing may subscribe with it.
    - `stop`: ends the source: the flow then drains and takes its last snapshot.
    - `pressure`: while it is high, nothing is read.
    - `config`: further librdkafka settings, such as SASL and TLS. They cannot change what the guarantee rests on.
    - `max_batch`: records per partition handed on at once; small, so that results behind them are not held back.
    - `max_epoch_bytes`: records of all partitions of this process in one epoch, in memory; Timely queues without bound
      within an epoch. A thousand small records of each, as there once were, are as much as a slow step takes, and a
      twentieth of what quick ones do.
    - `max_per_epoch`: records per partition and epoch, if that is to be bounded too.
    - `start`: where a partition without a snapshot begins.
    - `only`: leaves out the partitions for whose number it is false: those are read by others.
    - `progress`: is told of positions and of the end of each epoch.
    """

    def __init__(  # noqa: PLR0913  # options by keyword
        self,
        bootstrap: str,
        topics: Sequence[str],
        *,
        group_id: str,
        stop: Stop,
        pressure: Pressure | None = None,
        config: Mapping[str, str] | None = None,
        max_batch: int = 64,
        max_epoch_bytes: int = _EPOCH_BYTES,
        max_per_epoch: int | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        epoch_s: float = 1.0,
        only: Callable[[int], bool] = lambda _partition: True,
        progress: Progress | None = None,
    ) -> None:
        self._only = only
        self._progress = progress or Progress(group_id)
        self._epoch_s = epoch_s
        self._bootstrap = bootstrap
        self._topics = tuple(topics)
        self._group_id = group_id
        self._stop = stop
        self._pressure = pressure or Pressure()
        self._config = dict(config or {})
        self._max_batch = max_batch
        self._max_epoch_bytes = max_epoch_bytes
        self._max_per_epoch = max_per_epoch
        self._epoch_bytes = 0  # emitted by all partitions in epochs that have not ended; workers may differ by a batch
        self._start = start
        self._lock = (
            threading.Lock()
        )  # the workers of a process share this source, and each builds and closes its parts
        self._shared: _SharedConsumer | None = None
        self._at_start: dict[Place, tuple[int, int]] = {}

    def list_parts(self) -> list[str]:
        """All partitions of all topics. Retryable if no broker answers within 10 s.

        Fatal if a topic is missing, or none of its partitions is this process's: it would end at once, as if done.
        """
        with self._lock:
            found = self._consumer().partitions(self._topics)
        ours = [f"{topic}/{partition}" for topic, partition in found if self._only(partition)]
        if not ours:
            raise Fatal(
                f"topic {', '.join(self._topics)} has {len(found)} partitions, and none is for this slice; "
                "HEADRACE_SLICES must be no more than that: add partitions, or begin anew with fewer slices"
            )
        return ours

    def build_part(self, step_id: str, for_part: str, resume_state: Position | None) -> "_KafkaPartition":  # noqa: ARG002  # bytewax names them
        """Resume where the snapshot says, or begin at `start`."""
        topic, _, partition = for_part.rpartition("/")
        place = (topic, int(partition))
        with self._lock:
            consumer = self._consumer()
            if resume_state is None:
                low, high = self._watermarks_at_start(consumer, place)
                offset = low if self._start == "earliest" else high
            else:
                version, offset = resume_state
                if version != _VERSION:
                    raise Fatal(
                        f"{for_part}: its snapshot has version {version}, and this release reads {_VERSION}; "
                        "run the release that wrote it"
                    )
            consumer.add(place, offset)
        self._progress.reads(place, offset)
        return _KafkaPartition(self, consumer, place, offset)

    def _watermarks_at_start(self, consumer: _SharedConsumer, place: Place) -> tuple[int, int]:
        """Asked for all partitions at once: behind the long poll of one that is read already, each would take 0.5 s."""
        if place not in self._at_start:
            self._at_start = {each: consumer.watermarks(each) for each in consumer.partitions(self._topics)}
        return self._at_start[place]

    def _consumer(self) -> _SharedConsumer:
        if self._shared is None:
            self._shared = _SharedConsumer(self._bootstrap, self._config, self._group_id)
        return self._shared

    def _epoch_emitted(self, size: int) -> None:
        with self._lock:
            self._epoch_bytes += size

    def _remove(self, place: Place) -> None:
        self._progress.reads_no_more(place)
        with self._lock:
            if self._shared is not None and self._shared.remove(place):
                self._shared = None


class _KafkaPartition(StatefulSourcePartition[Record, Position]):
    def __init__(self, source: KafkaSource, consumer: _SharedConsumer, place: Place, offset: int) -> None:
        self._source = source
        self._consumer = consumer
        self._place = place
        self._next_offset = offset
        self._recoverable_offset = offset  # a restart resumes here or later
        self._emitted_in_epoch = 0
        self._bytes_in_epoch = 0
        self._epoch = 0  # how many have ended
        self._busy = True
        self._vain_looks = 0
        self._epochs = Epochs(source._epoch_s, datetime.now(UTC), source._progress.schedule)  # noqa: SLF001  # same

    def next_batch(self) -> list[Record]:
        if self._source._stop.requested:  # noqa: SLF001  # a part of the source
            raise StopIteration
        limit = self._limit()
        if limit <= 0 or self._source._pressure.high:  # noqa: SLF001  # same
            self._busy = False
            return []
        (records, size), self._busy = self._consumer.take(self._place, limit)
        self._vain_looks += 1
        if records:
            self._busy = True
            self._vain_looks = 0
            self._next_offset = records[-1].offset + 1
            self._emitted_in_epoch += len(records)
            self._bytes_in_epoch += size
            self._source._epoch_emitted(size)  # noqa: SLF001  # same
        return records

    def _limit(self) -> int:
        """How many records may be handed on now."""
        source = self._source
        if source._epoch_bytes >= source._max_epoch_bytes:  # noqa: SLF001  # a part of the source
            return 0
        if source._max_per_epoch is None:  # noqa: SLF001  # same
            return source._max_batch  # noqa: SLF001  # same
        return min(source._max_batch, source._max_per_epoch - self._emitted_in_epoch)  # noqa: SLF001  # same

    def next_awake(self) -> datetime | None:
        """At once while there is something to read, else at the next tick, in step with all partitions."""
        now = datetime.now(UTC)
        if not self._busy:
            return self._epochs.next_look(now, LOOK if self._vain_looks < _LOOKS_UNTIL_QUIET else QUIET_LOOK)
        moment = self._epochs.no_earlier(now)
        return None if moment is now else moment

    def snapshot(self) -> Position:
        """Bytewax calls this at the end of every epoch, once all that was emitted before it is durable."""
        self._consumer.commit(self._place, self._recoverable_offset)
        self._recoverable_offset = self._next_offset
        self._epoch += 1
        progress = self._source._progress  # noqa: SLF001  # a part of the source
        progress.took(self._place, self._next_offset, records=self._emitted_in_epoch)
        progress.ended(self._epoch)
        self._source._epoch_emitted(-self._bytes_in_epoch)  # noqa: SLF001  # same
        self._emitted_in_epoch = self._bytes_in_epoch = 0
        self._epochs.began(datetime.now(UTC))
        return (_VERSION, self._next_offset)

    def close(self) -> None:
        self._source._epoch_emitted(-self._bytes_in_epoch)  # noqa: SLF001  # same
        self._source._remove(self._place)  # noqa: SLF001  # a part of the source
