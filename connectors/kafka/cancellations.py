"""Cancellations to every process: whoever has the job must hear of it, and no partition says who that is.

Guarantee: what was on cancellations.requested when the reading began is known before a flow starts, unless the broker
takes more than half a minute to say it; what comes later, within a second. Nothing here stops a flow that runs: a topic
that is missing is looked for again, a broker that is out is waited for. Nothing is committed, and no group is joined.
"""

import threading
import time
from collections.abc import Mapping
from typing import Self

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from pydantic import ValidationError

from connectors.cancellations import Cancellations
from connectors.kafka.client import MISSING_TOPIC, ConnectionErrors, base_config, cause, record_of
from schemas.cancellations import CancelRequested
from schemas.errors import Fatal
from schemas.topics import topic_of

log = structlog.get_logger()

TOPIC = topic_of(CancelRequested).name
_START_S = 30.0  # a week of cancellations is read in a second
_LOOK_S = 5.0  # for a topic that is missing
_REFRESH_S = 60.0  # for partitions that were added
_METADATA_S = 5.0
_POLL_S = 0.2
_BATCH = 500


class CancellationReader:
    """Reads the topic into `cancellations` while entered, in a thread of its own; `wait` until it is at its end."""

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None, cancellations: Cancellations) -> None:
        self._cancellations = cancellations
        self._reading: dict[int, bool] = {}  # by partition: read to where it ended
        self._caught_up = threading.Event()
        self._closing = threading.Event()
        self._look_at = 0.0
        self._refused: str | None = None
        self._consumer = Consumer(
            {
                "queued.max.messages.kbytes": "16384",
                **base_config(bootstrap, config or {}, ConnectionErrors("cancellations")),
                "group.id": "headrace.cancellations",  # required by the client; nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",  # retention, or a new broker: what is there is all that holds
            }
        )
        self._thread = threading.Thread(target=self._run, name="cancellations", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def wait(self, timeout_s: float = _START_S) -> None:
        """Until all is known that was there; a broker that is out for longer is not awaited.

        Raises Fatal if the broker does not let us read the topic.
        """
        if not self._caught_up.wait(timeout_s):
            log.warning("cancellations are not read to their end yet; the flows begin without", waited_s=timeout_s)
        if self._refused is not None:
            raise Fatal(f"topic {TOPIC} cannot be read: {self._refused}; a flow needs the right to (docs/security.md)")

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._look()
                for message in self._consumer.consume(_BATCH, timeout=_POLL_S):
                    self._take(message)
            except KafkaException as error:
                self._failed(cause(error))
                self._look_at = 0.0
                self._closing.wait(_LOOK_S)

    def _failed(self, error: KafkaError) -> None:
        log.warning("cancellations cannot be read; trying again", error=error.str(), again_s=_LOOK_S)
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._refused = error.str()
            self._caught_up.set()

    def _look(self) -> None:
        """Read partitions that are new."""
        if time.monotonic() < self._look_at:
            return
        metadata = self._consumer.list_topics(TOPIC, timeout=_METADATA_S).topics[TOPIC]
        if metadata.error is not None and metadata.error.code() not in MISSING_TOPIC:
            raise KafkaException(metadata.error)  # it may not be read, or not yet: there may be cancellations
        found = metadata.partitions
        self._look_at = time.monotonic() + (_REFRESH_S if found else _LOOK_S)
        fresh = [partition for partition in found if partition not in self._reading]
        if fresh:
            self._consumer.incremental_assign([TopicPartition(TOPIC, each, OFFSET_BEGINNING) for each in fresh])
            self._reading |= dict.fromkeys(fresh, False)
        if not found:
            self._caught_up.set()  # nobody has cancelled anything

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is None:
            self._add(message)
        elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  # librdkafka's own code is spelled so
            self._reading[message.partition() or 0] = True
            if all(self._reading.values()):
                self._caught_up.set()
        else:
            self._failed(error)

    def _add(self, message: Message) -> None:
        record = record_of(message)
        if not record.value:  # a tombstone takes nothing back
            return
        try:
            cancelled = CancelRequested.model_validate_json(record.value)
        except ValidationError:
            log.warning("not a cancellation", partition=record.partition, offset=record.offset)
            return
        # The later of two clocks: a producer's wrong one must not make it a cancellation of long ago.
        said = cancelled.requested_at if "requested_at" in cancelled.model_fields_set else record.timestamp
        self._cancellations.add(cancelled, max(record.timestamp, said))
