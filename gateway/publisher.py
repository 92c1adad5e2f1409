"""Publish from a coroutine, and know at once when Kafka is out.

Guarantee: `publish` returns when all in-sync replicas have the record, and not before. A record whose publication has
raised is not there, or, after a time-out, may be: whoever repeats it repeats its id. Records of one key keep their
order. A caller that is cancelled takes nothing back.
"""

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from functools import partial
from typing import Literal, Self

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from connectors.kafka.client import ConnectionErrors, base_config, cause
from connectors.kafka.record import OutgoingRecord
from schemas.errors import Poison, Unavailable

log = structlog.get_logger()

_POLL_S = 0.1  # how late a closing is noticed; reports of deliveries are served as they come
_PROBE_EVERY_S = 0.5
_PROBE_S = 2.0
_RETRY_AFTER_S = 5.0
_BUSY_RETRY_AFTER_S = 1.0

_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})
_NO_TOPIC = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART})  # noqa: SLF001  # librdkafka's own
_OUT = frozenset({KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT, KafkaError._TRANSPORT})  # noqa: SLF001  # same


Delivery = asyncio.Future[KafkaError | None]
"""Of one record: done when it is durable, or with the reason why it is not."""


class TooLarge(Poison):
    """The broker takes no record of that size."""


class TopicMissing(Unavailable):
    """The topic is not there: a person has to create it."""


class Publisher:
    """One idempotent producer; `publish` from the event loop that has entered it.

    `timeout_s` bounds how long a record may be on its way. While Kafka is known to be out, nothing is tried: a probe in
    the background finds out when it is back.
    """

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None = None, *, timeout_s: float = 5.0) -> None:
        self.bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._errors = ConnectionErrors("gateway")
        self._kafka: Literal["unknown", "answers", "is out"] = "unknown"
        self._doubt = threading.Event()  # wakes the probe
        self._doubt.set()
        self._closing = threading.Event()
        self._settled: list[tuple[Delivery, KafkaError | None]] = []  # by the polling thread alone
        self._loop: asyncio.AbstractEventLoop | None = None
        settings = {
            "linger.ms": "1",
            "queue.buffering.max.kbytes": "65536",
            "message.max.bytes": "8388608",  # the topic's own max.message.bytes decides
            "topic.metadata.propagation.max.ms": "3000",
            "reconnect.backoff.max.ms": "1000",  # a person waits
            "socket.connection.setup.timeout.ms": "5000",
            "partitioner": "murmur2_random",  # as Java clients do
            **base_config(bootstrap, config or {}, self._errors),
            "error_cb": self._on_error,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": int(timeout_s * 1000),
        }
        self._producer = Producer(settings)
        self._threads = (
            threading.Thread(target=self._poll, name="publisher", daemon=True),
            threading.Thread(target=self._probe, name="publisher probe", daemon=True),
        )

    @property
    def reachable(self) -> bool:
        """Whether a broker has answered, and is not known to be gone."""
        return self._kafka == "answers"

    def ensure_reachable(self) -> None:
        """For whoever asks Kafka in another way, and may not wait until it answers. Raises Unavailable if it is out."""
        if self._kafka == "is out":
            raise self._unavailable()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def publish(self, record: OutgoingRecord) -> None:
        """Return when the record is durable.

        Raises:
            Unavailable: Kafka is out, or its queue here is full: at once where that is known.
            TopicMissing: which is Unavailable as well.
            TooLarge: the broker refuses it.
        """
        if self._loop is None or self._closing.is_set():
            raise Unavailable("the gateway is stopping; ask again", retry_after_s=_BUSY_RETRY_AFTER_S)
        if self._kafka == "is out":
            raise self._unavailable()
        delivery: Delivery = self._loop.create_future()
        try:
            self._producer.produce(
                record.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                on_delivery=partial(self._on_delivery, delivery),
            )
        except BufferError:
            raise Unavailable(
                "too much is on its way to Kafka already; ask again", retry_after_s=_BUSY_RETRY_AFTER_S
            ) from None
        except KafkaException as error:
            raise self._failure(record.topic, cause(error)) from error
        failure = await delivery
        if failure is not None:
            raise self._failure(record.topic, failure)

    async def close(self) -> None:
        """Deliver what is on its way, as long as that may take, and stop."""
        if self._closing.is_set():
            return
        self._closing.set()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        left = self._producer.flush(self._timeout_s + 1.0)
        self._hand_over()
        if left:
            log.error("records were not delivered before the end", records=left)

    def _poll(self) -> None:
        """Serve reports of deliveries, and hand over to the event loop what one poll gave."""
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)
            self._hand_over()

    def _on_delivery(self, delivery: Delivery, error: KafkaError | None, _message: Message) -> None:
        if error is not None and error.code() in _OUT:
            self._is_out()
        self._settled.append((delivery, error))

    def _hand_over(self) -> None:
        if not self._settled or self._loop is None:
            return
        settled, self._settled = self._settled, []
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, settled)

    def _on_error(self, error: KafkaError) -> None:
        self._errors(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001  # librdkafka's own codes are spelled so
            self._is_out()

    def _is_out(self) -> None:
        self._kafka = "is out"
        self._doubt.set()

    def _probe(self) -> None:
        """Ask whether Kafka is back, while it is out."""
        while not self._closing.is_set():
            if not self._doubt.wait(_POLL_S):
                continue
            self._doubt.clear()
            try:
                self._producer.list_topics(timeout=_PROBE_S)
            except KafkaException:
                self._is_out()
                self._closing.wait(_PROBE_EVERY_S)
            else:
                self._kafka = "answers"

    def _unavailable(self) -> Unavailable:
        reason = "" if self._errors.last is None else f" ({self._errors.last.str()})"
        return Unavailable(
            f"Kafka is out of reach{reason}: nothing was accepted; send the same again later",
            retry_after_s=_RETRY_AFTER_S,
        )

    def _failure(self, topic: str, error: KafkaError) -> Exception:
        code = error.code()
        if code in _TOO_LARGE:
            return TooLarge(f"topic {topic} takes no record of that size; send less, or raise its max.message.bytes")
        if code in _NO_TOPIC:
            return TopicMissing(f"topic {topic} is missing; create it: headrace topics create")
        if code in _OUT:
            return Unavailable(
                f"Kafka has not acknowledged it within {self._timeout_s:.0f} s: it may be there or not; send the same "
                "again, which is the same job",
                retry_after_s=_RETRY_AFTER_S,
            )
        log.error("a record was refused", topic=topic, error=error.str(), code=error.name())
        return Unavailable(f"topic {topic}: Kafka took no record: {error.str()}", retry_after_s=_RETRY_AFTER_S)


def _settle(settled: list[tuple[Delivery, KafkaError | None]]) -> None:
    for delivery, error in settled:
        if not delivery.done():  # its request was cancelled
            delivery.set_result(error)
