"""What a killed process wrote after its last snapshot, so that the next one does not write it again.

A flow resumes from a snapshot, and makes again what it had made since. Such an event has the id that it had (`ce_id`),
and what is on its topic since the snapshot says which ids are there. That is read before the first write after a
restart: a second's worth, as a rule.

Guarantee: none; the sink stays at-least-once, and this leaves out what is known to be there. An event is left out as
often as it was found, from the same step (`ce_source`). What has no `ce_id` is always written, and so is all

- on a topic that may not be read, which is logged;
- beyond the first 500,000 records of a topic, or later than five minutes after the restart, so that neither reading nor
  memory is without bound: by then the flow has long made again what it was at;
- on a broker that finds no records by time, as the embedded one.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

import structlog

from connectors.kafka.reader import TopicReader
from connectors.kafka.record import OutgoingRecord
from schemas.errors import Fatal

log = structlog.get_logger()

_MOST = 500_000  # of a topic; 100 bytes of memory and 10 us each
_REPLAY_S = 300.0

_Identity = tuple[str, bytes, bytes]  # topic, ce_source, ce_id
WrittenSnapshot = tuple[int, float, tuple[str, ...]]  # version, from when on to read (Unix seconds), which topics

_VERSION = 1


class Written:
    """Of the sinks of a flow. Thread-safe.

    `begun_s`: when the flow first started (Unix seconds), which stands for its last snapshot while it has none; None
    if that is now.
    """

    def __init__(
        self, bootstrap: str, config: Mapping[str, str] | None = None, *, begun_s: float | None = None
    ) -> None:
        self._bootstrap = bootstrap
        self._config = dict(config or {})
        self._lock = threading.Lock()
        self._since_s = begun_s  # None: there is nothing that might be left out
        self._resumes = False
        self._until = time.monotonic() + _REPLAY_S
        self._topics: set[str] = set()  # that the flow writes
        self._read: set[str] = set()
        self._found: Counter[_Identity] = Counter()

    def resume(self, snapshot: WrittenSnapshot) -> None:
        """A part of a sink resumes; the earliest of all counts."""
        version, since_s, topics = snapshot
        if version != _VERSION:
            raise Fatal(f"sink: snapshot version {version}, not {_VERSION}; run the release that wrote it")
        with self._lock:
            self._since_s = min(self._since_s, since_s) if self._resumes and self._since_s is not None else since_s
            self._resumes = True
            self._topics.update(topics)

    def snapshot(self) -> WrittenSnapshot:
        """For a part of a sink that has nothing more on its way to the broker."""
        with self._lock:
            if self._since_s is not None and (time.monotonic() > self._until or self._is_claimed()):
                self._since_s = None
                self._found.clear()
            since_s = time.time() if self._since_s is None else self._since_s
            return _VERSION, since_s, tuple(sorted(self._topics))

    def _is_claimed(self) -> bool:
        """Whether all that was found has been made again."""
        return self._topics <= self._read and not self._found

    def left(self, records: Sequence[OutgoingRecord]) -> Sequence[OutgoingRecord]:
        """Those that are to be written. Raises Retryable if no broker answers."""
        topics = {record.topic for record in records}
        with self._lock:
            self._topics |= topics
            if self._since_s is None:
                return records
            if unread := self._topics - self._read:
                self._look(unread, self._since_s)
            return [record for record in records if not self._take(record)] if self._found else records

    def _take(self, record: OutgoingRecord) -> bool:
        """Whether it is there; each that is answers for one."""
        identity = _identity(record.topic, record.headers)
        if identity is None or identity not in self._found:
            return False
        self._found[identity] -= 1
        if not self._found[identity]:
            del self._found[identity]
        return True

    def _look(self, topics: Iterable[str], since_s: float) -> None:
        since = datetime.fromtimestamp(since_s, UTC)
        with TopicReader(self._bootstrap, self._config) as reader:
            for topic in topics:
                self._read.add(topic)
                try:
                    if not reader.exists(topic):  # as the producer will say
                        continue
                    for record in islice(reader.since(topic, since), _MOST):
                        identity = _identity(topic, record.headers)
                        if identity is not None:
                            self._found[identity] += 1
                except Fatal as error:
                    log.warning("events may be written again after the restart", topic=topic, error=str(error))


def _identity(topic: str, headers: Sequence[tuple[str, bytes]]) -> _Identity | None:
    found = dict(headers)
    ce_id = found.get("ce_id")
    return None if ce_id is None else (topic, found.get("ce_source", b""), ce_id)
