"""What all our Kafka clients share: base settings of librdkafka, and what becomes of its connection errors."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka.record import Record

log = structlog.get_logger()

_LOG_EVERY_S = 30.0
_RETRY_S = 0.1

# librdkafka retries these by itself; meanwhile the flow waits, and that is lag.
TRANSIENT = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001  # librdkafka's own codes are spelled so
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError._WAIT_COORD,  # noqa: SLF001
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNKNOWN,
    }
)


MISSING_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})  # noqa: SLF001  # same


class ConnectionErrors:
    """Takes a client's connection errors. librdkafka reconnects by itself, so each outage is one warning every 30 s.

    `last` is the last error that says more than "all brokers are down", `refusal` what a broker said that did not let
    us in, and which variable to see to; a `quiet` one logs nothing, because its client lives for one request, whose
    exception tells.
    """

    def __init__(self, client: str, *, quiet: bool = False) -> None:
        self._client = client
        self._quiet = quiet
        self._logged_at = float("-inf")
        self.last: KafkaError | None = None
        self.refusal: str | None = None

    def __call__(self, error: KafkaError) -> None:
        """Called by librdkafka from within poll, consume or flush."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001  # librdkafka's own codes are spelled so
            self.last = error
        refusal = refusal_of(error)
        self.refusal = refusal or self.refusal
        if not self._quiet and time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.warning("kafka connection trouble; reconnecting", client=self._client, error=refusal or error.str())


def refusal_of(error: KafkaError) -> str | None:
    """What a broker said that does not let us in, and which variable to see to; None for any other error.

    Passwords and certificates are wrong until a person acts; that a connection was closed may be the broker's end.
    """
    said = error.str()
    if error.code() == KafkaError._AUTHENTICATION:  # noqa: SLF001  # librdkafka's own codes are spelled so
        if "handshake failed" in said:  # no such mechanism, or no SASL at this port
            return f"{said}; see to HEADRACE_KAFKA_SASL_MECHANISM and HEADRACE_KAFKA_SECURITY"
        return f"{said}; see to HEADRACE_KAFKA_USERNAME and HEADRACE_KAFKA_PASSWORD"
    if "certificate verify failed" in said:
        return f"{said}; see to HEADRACE_KAFKA_CA and HEADRACE_KAFKA_BOOTSTRAP"
    if "SSL alert" in said:  # what a broker sends to a client whose certificate it misses or does not trust
        return f"{said}; see to HEADRACE_KAFKA_CERT and HEADRACE_KAFKA_KEY"
    return None


def base_config(bootstrap: str, config: Mapping[str, str], errors: ConnectionErrors) -> dict[str, object]:
    """Settings for any client: the address, then `config` (security and tuning, in librdkafka's names)."""
    return {
        "bootstrap.servers": bootstrap,
        "log_level": 2,  # librdkafka's stderr lines repeat what error_cb hands us
        **config,
        "error_cb": errors,
    }


def cause(error: KafkaException) -> KafkaError:
    """The KafkaError inside an exception of the client."""
    inner: KafkaError = error.args[0]
    return inner


def watermarks(consumer: Consumer, place: TopicPartition, *, timeout_s: float) -> tuple[int, int]:
    """First offset kept in a partition, and the one after the last.

    Waits out what passes by itself: for a moment after its topic is new or its broker has started, a partition has no
    leader, or is not known. Raises KafkaException after `timeout_s` seconds, or at once for other errors.
    """
    passing = TRANSIENT | {KafkaError._UNKNOWN_PARTITION}  # noqa: SLF001  # librdkafka's own code
    until = time.monotonic() + timeout_s
    while True:
        try:
            return consumer.get_watermark_offsets(place, timeout=max(until - time.monotonic(), _RETRY_S))
        except KafkaException as error:
            if cause(error).code() not in passing or time.monotonic() > until:
                raise
            time.sleep(_RETRY_S)


def record_of(message: Message, *, headers: bool = True) -> Record:
    """A message as a plain value, byte for byte. Without `headers`, which cost as much as all else, it has none."""
    _, timestamp_ms = message.timestamp()
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=message.key(),
        value=message.value(),
        headers=_headers(message) if headers else (),
        timestamp=datetime.fromtimestamp(max(timestamp_ms, 0) / 1000, tz=UTC),  # -1 where the producer set none
    )


def _headers(message: Message) -> tuple[tuple[str, bytes], ...]:
    # The client's type allows more shapes than it ever hands out: pairs of a name and bytes, or None for no value.
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    return tuple((name, value or b"") for name, value in pairs)
