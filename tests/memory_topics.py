"""Topics in memory: what a test puts in, and what a flow wrote, in order."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from threading import Event as Flag

from bytewax.inputs import FixedPartitionedSource, Source, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.testing import TestingSource

from connectors.kafka.port import Delivered
from connectors.kafka.record import OutgoingRecord, Record
from schemas.dead_letter import DeadLetter
from schemas.event import Event
from schemas.jobs import StatusChanged
from schemas.topics import topic_of

Entry = Record | TestingSource.ABORT | TestingSource.EOF


def record(event: Event | bytes, *, topic: str | None = None, offset: int = 0, key: bytes | None = None) -> Record:
    """An event, or raw bytes, as it would have been read."""
    value = event if isinstance(event, bytes) else event.encode()
    name = topic or (topic_of(type(event)).name if isinstance(event, Event) else "documents.uploaded")
    headers = event.headers(source="test") if isinstance(event, Event) else ()
    message_key = event.key_bytes if isinstance(event, Event) else key
    return Record(name, 0, offset, message_key, value, headers, datetime(2026, 1, 1, tzinfo=UTC))


class _ListPartition(StatefulSinkPartition[Sequence[OutgoingRecord], None]):
    def __init__(self, written: list[OutgoingRecord], delivered: Delivered | None) -> None:
        self._written = written
        self._delivered = delivered
        self._sent: list[OutgoingRecord] = []

    def write_batch(self, values: list[Sequence[OutgoingRecord]]) -> None:
        for records in values:
            self._written.extend(records)
            self._sent.extend(records)

    def snapshot(self) -> None:
        if self._delivered is not None and self._sent:
            self._delivered(self._sent)
        self._sent = []


class _ListSink(FixedPartitionedSink[Sequence[OutgoingRecord], None]):
    def __init__(self, written: list[OutgoingRecord], delivered: Delivered | None) -> None:
        self._written = written
        self._delivered = delivered

    def list_parts(self) -> list[str]:
        return ["0"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _ListPartition:  # noqa: ARG002
        return _ListPartition(self._written, self._delivered)


class _OfTopic:
    """The records of one topic; of several topics, the first one to be read also has the ends and aborts."""

    def __init__(self, entries: Iterable[Entry], topic: str, *, first: bool) -> None:
        self._entries = entries
        self._topic = topic
        self._first = first

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._entries:
            if entry.topic == self._topic if isinstance(entry, Record) else self._first:
                yield entry


class _OpenPartition(StatefulSourcePartition[Record, int]):
    def __init__(self, records: list[Record], closed: Flag, position: int) -> None:
        self._records = records
        self._closed = closed
        self._position = position

    def next_batch(self) -> list[Record]:
        batch = self._records[self._position : self._position + 1]
        if not batch and self._closed.is_set():
            raise StopIteration
        self._position += len(batch)
        return batch

    def next_awake(self) -> datetime | None:
        return None if self._position < len(self._records) else datetime.now(UTC) + timedelta(milliseconds=10)

    def snapshot(self) -> int:
        return self._position


class _OpenSource(FixedPartitionedSource[Record, int]):
    def __init__(self, records: list[Record], closed: Flag) -> None:
        self._records = records
        self._closed = closed

    def list_parts(self) -> list[str]:
        return ["0"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _OpenPartition:  # noqa: ARG002
        return _OpenPartition(self._records, self._closed, resume_state or 0)


class MemoryTopics:
    """Topics on a list. Each run iterates `entries` anew, from where the recovery state says."""

    def __init__(self, entries: Iterable[Entry], *, batch_size: int = 1) -> None:
        self._entries = entries
        self._batch_size = batch_size
        self._sources = 0
        self.written: list[OutgoingRecord] = []

    def source(self, event: type[Event]) -> Source[Record]:
        """The entries on the topic of `event`."""
        self._sources += 1
        return TestingSource(_OfTopic(self._entries, topic_of(event).name, first=self._sources == 1), self._batch_size)

    def sink(self, delivered: Delivered | None = None) -> _ListSink:
        """Keeps what is written."""
        return _ListSink(self.written, delivered)

    def on(self, topic: str) -> list[dict[str, object]]:
        """The payloads written to a topic."""
        return [json.loads(item.value) for item in self.written if item.topic == topic]

    def statuses(self) -> list[StatusChanged]:
        """Every status written."""
        return [StatusChanged.model_validate(payload) for payload in self.on("jobs.status")]

    def dead_letters(self) -> list[DeadLetter]:
        """Every dead letter written."""
        return [DeadLetter.model_validate_json(item.value) for item in self.written if item.topic.endswith(".dlq")]


class OpenTopics(MemoryTopics):
    """Topics that may be written to while a flow reads them, until they are closed."""

    def __init__(self) -> None:
        super().__init__([])
        self._records: dict[str, list[Record]] = {}
        self._closed = Flag()

    def source(self, event: type[Event]) -> Source[Record]:
        """What is put on the topic of `event`, from the first."""
        return _OpenSource(self._records.setdefault(topic_of(event).name, []), self._closed)

    def put(self, event: Event) -> Record:
        """Add it to its topic, at the next offset."""
        records = self._records.setdefault(topic_of(type(event)).name, [])
        records.append(record(event, offset=len(records)))
        return records[-1]

    def close(self) -> None:
        """Nothing more comes."""
        self._closed.set()
