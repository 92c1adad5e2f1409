"""What a killed process wrote after its last snapshot, so that the next one does not write it again.

A flow resumes from a snapshot, and makes again what it had made since. Such an event has the id that it had (`ce_id`),
and what is on its topic since the snapshot says which ids are there. It is read when the flow first writes to the topic
after a restart, and from the moment of the snapshot on only: a second's worth, as a rule.

Guarantee: none; the sink stays at-least-once, and this leaves out what is known to be there. An event is left out as
often as it was found, by the same step's `ce_source`. What has no `ce_id` is always written, and so is everything

- where the topic may not be read, which is logged;
- that was written over ten minutes after the snapshot, or comes over ten minutes after the restart, so that neither
  reading nor memory is without bound: by then the flow has long made again what it was at;
- on a broker that finds no offset by time, as the embedded one.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from connectors.kafka.reader import TopicReader
from connectors.kafka.record import OutgoingRecord
from schemas.errors import Fatal

log = structlog.get_logger()

_SPAN = timedelta(minutes=10)

_Identity = tuple[str, bytes, bytes]  # topic, ce_source, ce_id


class Written:
    """Of the sinks of a flow. Thread-safe."""

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None = None) -> None:
        self._bootstrap = bootstrap
        self._config = dict(config or {})
        self._lock = threading.Lock()
        self._since: datetime | None = None
        self._until = float("inf")  # monotonic: when nothing is left out any more
        self._topics: set[str] = set()  # that have been read
        self._found: Counter[_Identity] = Counter()

    def resumes(self, snapshot_s: float) -> None:
        """A part of a sink resumes: all that it had written by then (Unix seconds) is not made again."""
        moment = datetime.fromtimestamp(snapshot_s, UTC)
        with self._lock:
            self._since = moment if self._since is None else min(self._since, moment)

    def left(self, records: Sequence[OutgoingRecord]) -> Sequence[OutgoingRecord]:
        """Those that are to be written. Raises Retryable if no broker answers."""
        if self._since is None:
            return records
        with self._lock:
            return [record for record in records if not self._take(record)]

    def _take(self, record: OutgoingRecord) -> bool:
        """Whether it is there; each that is answers for one."""
        if self._since is None:
            return False
        if record.topic not in self._topics:
            self._read(record.topic, self._since)
        elif time.monotonic() > self._until:
            self._since = None
            self._found.clear()
            return False
        identity = _identity(record.topic, record.headers)
        if identity is None or not self._found.get(identity):
            return False
        self._found[identity] -= 1
        return True

    def _read(self, topic: str, since: datetime) -> None:
        if not self._topics:
            self._until = time.monotonic() + _SPAN.total_seconds()
        self._topics.add(topic)
        began = time.monotonic()
        count = 0
        try:
            with TopicReader(self._bootstrap, self._config) as reader:
                if not reader.exists(topic):  # as the producer will say
                    return
                for record in reader.between(topic, since, since + _SPAN):
                    count += 1
                    identity = _identity(topic, record.headers)
                    if identity is not None:
                        self._found[identity] += 1
        except Fatal as error:
            log.warning("what was written before the restart may be written again", topic=topic, error=str(error))
            return
        log.info("read what was written since the last snapshot", topic=topic, records=count, s=time.monotonic() - began)


def _identity(topic: str, headers: Sequence[tuple[str, bytes]]) -> _Identity | None:
    found = dict(headers)
    ce_id = found.get("ce_id")
    return None if ce_id is None else (topic, found.get("ce_source", b""), ce_id)
