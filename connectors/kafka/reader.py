"""Read topics from their earliest record to where they end now, for whoever asks a question and leaves.

Guarantee: every record that was in a topic when its reading began is seen once, in order within its partition; what
comes later is not. Nothing is committed, and no group is joined. Memory: librdkafka's queue, 16 MB.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from connectors.kafka.client import (
    MISSING_TOPIC,
    TRANSIENT,
    ConnectionErrors,
    base_config,
    cause,
    record_of,
    watermarks,
)
from connectors.kafka.record import Record
from connectors.kafka.stop import Stop
from connectors.kafka.topics import ensure_reachable
from schemas.errors import Fatal, Retryable

_TIMEOUT_S = 10.0  # for metadata; a command must fail within 15 s where no broker answers
_STALL_S = 30.0  # without any record: longer than the election of a new partition leader
_POLL_S = 0.1
_BATCH = 500


class TopicReader:
    """One consumer for any number of readings; usable while entered. Not thread-safe.

    Raises Retryable, on entering, if no broker answers within 10 s. `stop` ends a reading early, without an error.
    """

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None = None, stop: Stop | None = None) -> None:
        self._bootstrap = bootstrap
        self._config = dict(config or {})
        self._stop = stop or Stop()
        self._errors = ConnectionErrors("reader", quiet=True)
        self._entered: Consumer | None = None

    def __enter__(self) -> Self:
        ensure_reachable(self._bootstrap, self._config, timeout_s=_TIMEOUT_S)
        self._entered = Consumer(
            {
                "queued.max.messages.kbytes": "16384",
                # Nobody waits for what is not there yet. A broker answers the requests of a connection in turn: behind
                # the default's long poll of half a second, the next reading began as late.
                "fetch.wait.max.ms": "10",
                **base_config(self._bootstrap, self._config, self._errors),
                "group.id": "headrace.reader",  # required by the client; nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,  # compaction may have removed the last offsets
                "auto.offset.reset": "earliest",  # retention may remove the first ones while we start
            }
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._entered is not None:
            self._entered.close()
            self._entered = None

    @property
    def _consumer(self) -> Consumer:
        if self._entered is None:
            raise RuntimeError("enter the reader before use")
        return self._entered

    def exists(self, topic: str) -> bool:
        """Whether the broker has this topic."""
        return bool(self._partitions(topic))

    def records(self, topics: Sequence[str], starts: Mapping[tuple[str, int], int] | None = None) -> Iterator[Record]:
        """Everything in `topics`, which must exist. Raises Retryable if the broker stops answering.

        starts: by topic and partition, what is before these offsets is left out; where a topic was made anew, and ends
        before them, nothing is.
        """
        try:
            ends = dict(self._ends(topics))
        except KafkaException as error:
            raise self._unreachable(cause(error)) from error
        for place, start in (starts or {}).items():
            low, high = ends.get(place, (0, 0))
            if low < start <= high:
                ends[place] = (start, high)
        try:
            self._consumer.assign([TopicPartition(*place, low) for place, (low, _) in ends.items()])
            yield from self._until({place: high for place, (low, high) in ends.items() if low < high})
        finally:
            if self._entered is not None:  # an abandoned generator may end after its reader
                self._entered.unassign()

    def record_at(self, topic: str, partition: int, offset: int) -> Record | None:
        """One record, without reading what is before it; None if there is none any more. Raises as records() does."""
        if partition not in self._partitions(topic):
            return None
        place = TopicPartition(topic, partition, offset)
        try:
            low, high = watermarks(self._consumer, place, timeout_s=_TIMEOUT_S)
        except KafkaException as error:
            raise self._unreachable(cause(error)) from error
        if not low <= offset < high:
            return None
        try:
            self._consumer.assign([place])
            return next(self._until({(topic, partition): offset + 1}), None)  # compaction may have left a later one
        finally:
            self._consumer.unassign()

    def _partitions(self, topic: str) -> list[int]:
        try:
            metadata = self._consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise self._unreachable(cause(error)) from error
        if metadata.error is not None and metadata.error.code() not in MISSING_TOPIC:
            raise Fatal(f"topic {topic} cannot be read at {self._bootstrap}: {metadata.error.str()}")
        return sorted(metadata.partitions)

    def _ends(self, topics: Sequence[str]) -> Iterator[tuple[tuple[str, int], tuple[int, int]]]:
        for topic in topics:
            partitions = self._partitions(topic)
            if not partitions:
                raise Fatal(f"topic {topic} is missing at {self._bootstrap}; create it: headrace topics create")
            for partition in partitions:
                place = TopicPartition(topic, partition)
                yield (topic, partition), watermarks(self._consumer, place, timeout_s=_TIMEOUT_S)

    def _until(self, ends: dict[tuple[str, int], int]) -> Iterator[Record]:
        seen_at = time.monotonic()
        while ends and not self._stop.requested:
            messages = self._consumer.consume(_BATCH, timeout=_POLL_S)
            if messages:
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > _STALL_S:
                raise self._unreachable(self._errors.last)
            for message in messages:
                place = (message.topic() or "", message.partition() or 0)
                end = ends.get(place, 0)
                error = message.error()
                if error is not None:
                    if self._is_at_end(place, error):
                        ends.pop(place, None)
                    continue
                record = record_of(message)
                if record.offset < end:
                    yield record
                if record.offset + 1 >= end:
                    ends.pop(place, None)
            if messages:
                seen_at = time.monotonic()  # whoever takes the records may have taken long

    def _is_at_end(self, place: tuple[str, int], error: KafkaError) -> bool:
        if error.code() not in {KafkaError._PARTITION_EOF, *TRANSIENT}:  # noqa: SLF001  # librdkafka's own codes are spelled so
            raise Fatal(f"{place[0]}/{place[1]} cannot be read at {self._bootstrap}: {error.str()}")
        return error.code() == KafkaError._PARTITION_EOF  # noqa: SLF001  # same

    def _unreachable(self, error: KafkaError | None) -> Retryable:
        reason = "no reason given" if error is None else (self._errors.last or error).str()
        return Retryable(
            f"Kafka at {self._bootstrap} stopped answering: {reason}; check that the broker runs, then repeat"
        )
