"""What a killed process has written since the snapshot from which the next one resumes: it is not written again.

After a kill, everything since the last snapshot is read and worked on again, so its results come again as well. Each
record that is about to be written is looked for among those that are in its topic already, and left out if it is there.

Guarantee: a record is left out only if one of the same topic, key, value and headers (but for `ce_time`, when it was
said) is in the topic and no other one was left out for it: acknowledged, and read back. Whatever cannot be found out is
written: then it is at-least-once, as it is for results that differ from one time to the next.

What remains is what the broker had received and not yet appended when the topic was read back, which is when the first
record comes for it; and a kill before the flow's first snapshot.

Memory: 16 bytes and a dict's entry, some 130 bytes, for each record that is read back, for five minutes.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from connectors.kafka.client import ConnectionErrors, base_config, watermarks
from connectors.kafka.record import OutgoingRecord

log = structlog.get_logger()

MARGIN_S = 5.0
"""How long before its flush was over a next epoch may have begun to write, and how far clocks may differ."""
REMEMBERED_S = 300.0
"""After a start: what has not come again by then does not come."""
_READ_S = 30.0
_TIMEOUT_S = 10.0
_MOST = 1_000_000  # records of a topic; a flow writes some ten thousand in an epoch
_BATCH = 1000
_TIME_HEADER = "ce_time"


class WrittenBefore:
    """Of one flow, for all its sinks in this process. Thread-safe. `clock`: Unix seconds."""

    def __init__(
        self, bootstrap: str, config: Mapping[str, str] | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._bootstrap = bootstrap
        self._config = dict(config or {})
        self._clock = clock
        self._began_at = clock()
        self._lock = threading.Lock()
        self._since: float | None = None
        self._found: dict[str, Counter[bytes]] = {}

    def resumed(self, flushed_at: float) -> None:
        """A part of a sink resumes from a snapshot whose flush was over at that moment."""
        with self._lock:
            self._since = max(flushed_at, self._since or 0.0)

    def takes_off(self, record: OutgoingRecord) -> bool:
        """Whether the record is in its topic already; true once for each time that it is there."""
        since = self._since
        if since is None:
            return False
        with self._lock:
            if self._clock() - self._began_at > REMEMBERED_S:
                self._since = None
                self._found.clear()
                return False
            found = self._found.get(record.topic)
            if found is None:
                found = self._found[record.topic] = self._read(record.topic, since - MARGIN_S)
            if not found:
                return False
            digest = _digest(record.key, record.value, record.headers)
            if digest not in found:
                return False
            found[digest] -= 1
            if found[digest] == 0:
                del found[digest]
            return True

    def _read(self, topic: str, since: float) -> Counter[bytes]:
        """What is in `topic` since that moment; as much of it as can be read in half a minute."""
        consumer = Consumer(
            {
                "fetch.wait.max.ms": "50",
                **base_config(self._bootstrap, self._config, ConnectionErrors("written before")),
                "group.id": "headrace.written",  # required by the client; nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        found: Counter[bytes] = Counter()
        try:
            self._read_to_its_end(consumer, topic, since, found)
        except KafkaException as error:
            log.warning("what was written before the restart is not known; it may be repeated", error=str(error))
        finally:
            consumer.close()
        if found:
            log.info("records of a former process, which are not written again", topic=topic, records=found.total())
        return found

    def _read_to_its_end(self, consumer: Consumer, topic: str, since: float, found: Counter[bytes]) -> None:
        known = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic].partitions
        moment_ms = max(round(since * 1000), 0)
        starts = consumer.offsets_for_times([TopicPartition(topic, each, moment_ms) for each in known], _TIMEOUT_S)
        left: dict[int, int] = {}  # partition to its end
        for start in starts:
            _, end = watermarks(consumer, TopicPartition(topic, start.partition), timeout_s=_TIMEOUT_S)
            if 0 <= start.offset < end:
                left[start.partition] = end
        consumer.assign([start for start in starts if start.partition in left])
        until = time.monotonic() + _READ_S
        while left:
            if time.monotonic() > until or found.total() > _MOST:
                log.warning("what was written before the restart is too much; some may be repeated", topic=topic)
                return
            for message in consumer.consume(_BATCH, timeout=0.1):
                error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
                if error is None:
                    found[_digest(message.key(), message.value(), message.headers() or ())] += 1  # type: ignore[arg-type]  # pairs of str and bytes
                elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001  # librdkafka's own code is spelled so
                    raise KafkaException(error)
                if offset + (error is None) >= left.get(partition, 0):
                    left.pop(partition, None)


def _digest(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...] | list[tuple[str, bytes]]
) -> bytes:
    digest = blake2b(digest_size=16)
    said = [part for name, text in headers if name != _TIME_HEADER for part in (name.encode(), text or b"")]
    for part in (key or b"", value or b"", *said):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
