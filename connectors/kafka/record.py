"""What crosses the Kafka boundary, as plain values: a Record read, an OutgoingRecord to write."""

from dataclasses import dataclass
from datetime import datetime

from schemas.event import Event
from schemas.topics import topic_of
from schemas.trace import Trace


@dataclass(frozen=True)
class Record:
    """One message as it was read, byte for byte, so that a dead letter can carry it and a redrive repeat it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: datetime  # broker's or producer's, UTC

    @property
    def origin(self) -> str:
        """Names the message: a replay has the same, a message of equal content another one."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def header(self, name: str) -> str | None:
        """The last header of that name, or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value.decode("utf-8", errors="replace")
        return None


@dataclass(frozen=True)
class OutgoingRecord:
    """One message to produce. Kafka chooses the partition by the key (murmur2, as every other client does)."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class RepeatedRecord:
    """One message to produce again as it once was: without a key or a value where it had none."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def outgoing(event: Event, *, step: str, topic: str | None = None, trace: Trace | None = None) -> OutgoingRecord:
    """The record of an event: its topic (by the catalogue, unless given), key, JSON and CloudEvents headers."""
    headers = event.headers(source=f"headrace/{step}", trace=trace)
    return OutgoingRecord(topic or topic_of(type(event)).name, event.key_bytes, event.encode(), headers)
