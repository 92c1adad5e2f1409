"""Produce records so that none is lost without a word.

Guarantee: at-least-once, in produce order per key for everything that shares a ReliableProducer. A record that cannot
be delivered raises, at the next send or flush of its outbox.
"""

import threading
import time
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from connectors.kafka.client import ConnectionErrors, base_config, cause
from connectors.kafka.record import OutgoingRecord, RepeatedRecord
from schemas.errors import Fatal, HeadraceError, Retryable

_POLL_S = 0.01  # how late a flush notices that another thread has served its last delivery report
_FLUSH_GRACE_S = 5.0  # librdkafka looks for messages that are over time once a second


class ReliableProducer:
    """One idempotent producer for all sinks of a process (acks=all). Thread-safe.

    `delivery_timeout_s` bounds how long a record may be undelivered, broker outages included, before the flow stops.
    Two minutes, librdkafka's own default, outlast a rolling restart of the brokers.
    """

    def __init__(
        self, bootstrap: str, config: Mapping[str, str] | None = None, *, delivery_timeout_s: float = 120.0
    ) -> None:
        self.bootstrap = bootstrap
        self.delivery_timeout_s = delivery_timeout_s
        self._producer = Producer(
            {
                "linger.ms": "5",
                "queue.buffering.max.kbytes": "65536",  # librdkafka's 1 GB is more than a pod has
                # The topic's own max.message.bytes decides; librdkafka's 1 MB would refuse many a dead letter.
                "message.max.bytes": "8388608",
                "topic.metadata.propagation.max.ms": "10000",  # how long a topic may be unknown before its records fail
                "partitioner": "murmur2_random",  # as Java clients do
                **base_config(bootstrap, config or {}, ConnectionErrors("sink")),
                "enable.idempotence": True,
                "acks": "all",
                "delivery.timeout.ms": int(delivery_timeout_s * 1000),
            }
        )

    def outbox(self) -> "Outbox":
        """A way to write whose flush waits for its own records only, so that writers do not hold up each other."""
        return Outbox(self, self._producer)


class Outbox:
    """What one writer has handed to the producer and the broker has not yet acknowledged."""

    def __init__(self, owner: ReliableProducer, producer: Producer) -> None:
        self._owner = owner
        self._producer = producer
        self._lock = threading.Lock()  # reports arrive on whichever thread polls the producer
        self._pending = 0
        self._failed = 0
        self._first_failure: HeadraceError | None = None

    def send(self, *records: OutgoingRecord | RepeatedRecord) -> None:
        """Hand over records; waits while the producer's queue is full, which is back-pressure.

        Raises Fatal (refused) or Retryable (not delivered in time) for one of these or of earlier ones. Reports of
        deliveries are served once for all, since to look for them costs as much as to hand over a record.
        """
        with self._lock:
            self._pending += len(records)
        for number, record in enumerate(records):
            try:
                self._produce(record)
            except KafkaException as error:
                failure = self._failure(record.topic, cause(error), len(record.value or b""))
                self._settle(failure, count=len(records) - number)
                break
        self._producer.poll(0)
        self._raise_failure()

    def _produce(self, record: OutgoingRecord | RepeatedRecord) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    headers=list(record.headers),
                    on_delivery=self._on_delivery,
                )
            except BufferError:
                self._producer.poll(_POLL_S)  # ends at the latest when queued records run into the delivery timeout
            else:
                return

    def flush(self) -> None:
        """Return when every record sent so far is acknowledged.

        Raises Fatal if the broker refused one (unknown topic, too large, not authorized), and Retryable if one was not
        delivered within the delivery timeout; after a restart it is produced again.
        """
        until = time.monotonic() + self._owner.delivery_timeout_s + _FLUSH_GRACE_S
        while self._pending and not self._failed:
            if time.monotonic() > until:
                raise Retryable(
                    f"{self._pending} records are not acknowledged by Kafka at {self._owner.bootstrap} "
                    f"after {self._owner.delivery_timeout_s:.0f} s; check the brokers, then restart the flow"
                )
            self._producer.poll(_POLL_S)
        self._raise_failure()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        self._settle(None if error is None else self._failure(message.topic() or "", error, len(message)))

    def _settle(self, failure: HeadraceError | None, *, count: int = 1) -> None:
        with self._lock:
            self._pending -= count
            if failure is not None:
                self._failed += 1
                self._first_failure = self._first_failure or failure

    def _raise_failure(self) -> None:
        if self._first_failure is not None:
            raise self._first_failure

    def _failure(self, topic: str, error: KafkaError, size_bytes: int) -> HeadraceError:
        what = f"topic {topic}: a record of {size_bytes} bytes was not delivered to Kafka at {self._owner.bootstrap}"
        reason = f"{error.str()} ({error.name()})"
        if error.code() in (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT):  # noqa: SLF001  # librdkafka's own codes
            return Retryable(
                f"{what} within {self._owner.delivery_timeout_s:.0f} s: {reason}; "
                "check the brokers, then restart the flow"
            )
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
            return Fatal(f"{what}: {reason}; raise the topic's max.message.bytes, and restart the flow")
        if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):  # noqa: SLF001  # same
            return Fatal(f"{what}: {reason}; create it: headrace topics create")
        return Fatal(f"{what}: {reason}")
