"""The thread that reads the topics into the read model, and tells the hub.

Guarantee: every record of the topics is applied once, in the order of its partition, however often the gateway or the
broker stops. Offsets that their topic cannot hold, another topic of the same name or another cluster mean that the
broker was replaced: then everything is read anew. A topic that does not exist yet is looked for every few seconds.
"""

import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names, not marked as exported
    AdminClient,
    OffsetSpec,
    TopicDescription,
)

from connectors.kafka.client import TRANSIENT, ConnectionErrors, base_config, cause, record_of
from connectors.kafka.record import Record
from gateway.applying import TOPICS, WITH_HEADERS
from gateway.hub import Hub
from gateway.read_model import ReadModel
from schemas.event import utc_now

log = structlog.get_logger()

MOST = 5000
"""Records in one transaction."""
_LOOK_S = 10.0  # for new topics and partitions
_LOOK_FOR_MISSING_S = 1.0  # a topic may appear with its first record, which somebody waits for
_PRUNE_S = 60.0
_POLL_S = 0.1
_GATHER_S = 0.005  # between two batches: one after the other as fast as they come would be a transaction per record
_TIMEOUT_S = 2.0
_AGAIN_S = 1.0  # after a failure that should not be

_PASSING = TRANSIENT | {
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001  # librdkafka's own code
    KafkaError.UNKNOWN_TOPIC_OR_PART,  # for a moment after its topic was made
}
_AWAY = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001  # same: the offset is not in the topic any more
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001  # same
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)
"""To be looked for anew: the topic or the place in it has gone."""

_Place = tuple[str, int]


class _ReplacedError(Exception):
    """What is in the read model comes from other topics than those that are there now."""


class Projection:
    """One thread; `caught_up` once all that was there at its start has been applied."""

    def __init__(self, bootstrap: str, options: Mapping[str, str], read_model: ReadModel, hub: Hub) -> None:
        self._bootstrap = bootstrap
        self._options = dict(options)
        self._read_model = read_model
        self._hub = hub
        self._stop = threading.Event()
        self._failing = False
        self._following: _Following | None = None
        self._thread = threading.Thread(target=self._run, name="projection", daemon=True)

    @property
    def caught_up(self) -> bool:
        """Whether everything that was there when it began is applied."""
        return self._following is not None and self._following.caught_up

    @property
    def healthy(self) -> bool:
        """Whether it goes on, or waits for Kafka."""
        return self._thread.is_alive() and not self._failing

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the batch that it is at."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except _ReplacedError as error:
                log.warning("the read model is made anew", reason=str(error))
                self._make_anew()
            except Exception:
                self._failing = True
                if self._read_model.is_damaged:
                    log.exception("the read model is damaged; it is made anew")
                    self._make_anew()
                    continue
                log.exception("the read model stands still; trying again", again_s=_AGAIN_S)
                self._stop.wait(_AGAIN_S)

    def _make_anew(self) -> None:
        try:
            self._read_model.clear()
        except Exception:
            log.exception("the read model cannot be made anew; trying again", again_s=_AGAIN_S)
            self._stop.wait(_AGAIN_S)
        self._hub.send_away()

    def _follow(self) -> None:
        following = _Following(self._bootstrap, self._options, self._read_model)
        self._following = following
        prune_at = 0.0
        try:
            while not self._stop.is_set():
                records = following.records()
                self._hub.behind_s = following.behind_s
                self._hub.publish(self._read_model.apply(records))
                if self._read_model.is_damaged:
                    raise _ReplacedError("its file is damaged")
                self._failing = False
                if following.caught_up and time.monotonic() >= prune_at:
                    self._read_model.prune(utc_now())
                    prune_at = time.monotonic() + _PRUNE_S
        finally:
            following.close()


class _Following:
    """One consumer from the read model's positions on. Raises _ReplacedError where these mean nothing any more."""

    def __init__(self, bootstrap: str, options: Mapping[str, str], read_model: ReadModel) -> None:
        self._read_model = read_model
        self._errors = ConnectionErrors("projection")
        self._consumer = Consumer(
            {
                # A broker answers as soon as there is something; the embedded one only when that time is over. Each
                # request names every partition: a hundred a second took a quarter of a core of an idle broker.
                "fetch.wait.max.ms": 50,
                "fetch.queue.backoff.ms": 10,
                "queued.max.messages.kbytes": 32 * 1024,
                **base_config(bootstrap, options, self._errors),
                "group.id": "headrace.gateway",  # required by the client; nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
            }
        )
        settings: dict[str, Any] = base_config(bootstrap, options, ConnectionErrors("projection", quiet=True))
        self._admin = AdminClient(settings)
        self._behind: set[_Place] = set()  # partitions whose end, as it was found first, is not reached yet
        self._assigned: set[_Place] = set()
        self._all_begun = False
        self._look_at = 0.0
        self._gather_until = 0.0
        self.behind_s = 0.0  # the age of the oldest record that came last
        self.caught_up = False  # for good, once all that was there at first is applied
        self._described: dict[str, Future[TopicDescription]] = {}

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def records(self) -> list[Record]:
        """What has come: at once if it was quiet before, else after 0.1 s at most. What came before is applied."""
        self.caught_up = self.caught_up or (self._all_begun and not self._behind)
        self._look()
        first = self._consumer.poll(_POLL_S)
        if first is None:
            self.behind_s = 0.0
            return []
        messages = [first, *self._consumer.consume(MOST - 1, timeout=max(self._gather_until - time.monotonic(), 0.0))]
        self._gather_until = time.monotonic() + _GATHER_S
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(record_of(message, headers=message.topic() in WITH_HEADERS))
            else:
                self._judge(_place(message), error)
        if records:
            self.behind_s = (utc_now() - min(record.timestamp for record in records)).total_seconds()
        return records

    def _look(self) -> None:
        """Find topics and partitions that are new, and topics that were replaced, every few seconds."""
        self._compare()
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_FOR_MISSING_S
        try:
            metadata = self._consumer.list_topics(timeout=_TIMEOUT_S)
            if metadata.cluster_id and not self._read_model.belongs_to("", metadata.cluster_id):
                raise _ReplacedError(f"another cluster answers: {metadata.cluster_id}")
            there = {
                (topic, partition)
                for topic in TOPICS.keys() & metadata.topics.keys()
                for partition in metadata.topics[topic].partitions
            }
            self._begin(there - self._assigned)
            self._all_begun = there <= self._assigned
        except KafkaException as error:
            if cause(error).code() not in _PASSING:
                raise
            return  # an outage; librdkafka reconnects
        topics = sorted({topic for topic, _ in there})
        if len(topics) == len(TOPICS) and self._all_begun:
            self._look_at = time.monotonic() + _LOOK_S
        if topics:
            self._described = self._admin.describe_topics(TopicCollection(topics), request_timeout=_LOOK_S)

    def _compare(self) -> None:
        """Whether topics are still the same ones; a broker that knows no ids of topics does not say."""
        for topic in [topic for topic, described in self._described.items() if described.done()]:
            described = self._described.pop(topic)
            if described.exception() is None:
                topic_id = str(described.result().topic_id)
                if not self._read_model.belongs_to(topic, topic_id):
                    raise _ReplacedError(f"topic {topic} is another one of that name")

    def _begin(self, places: Collection[_Place]) -> None:
        """Read them from where the read model is; all are asked for at once, since one by one takes seconds.

        Those whose leader is not known wait for the next look.
        """
        if not places:
            return
        low = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # its stub's omission
        high = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # same
        reached = self._read_model.positions()
        begun: list[TopicPartition] = []
        for place in sorted(low.keys() & high.keys()):
            at = reached.get(place, low[place])
            if at > high[place]:
                raise _ReplacedError(f"{place[0]}/{place[1]} ends at offset {high[place]}, and was read up to {at}")
            begun.append(TopicPartition(*place, max(at, low[place])))
            if begun[-1].offset < high[place]:
                self._behind.add(place)
        self._consumer.incremental_assign(begun)
        self._assigned |= low.keys() & high.keys()

    def _offsets(self, places: Collection[_Place], which: OffsetSpec) -> dict[_Place, int]:
        asked = {TopicPartition(*place): which for place in places}
        found: dict[_Place, int] = {}
        for place, future in self._admin.list_offsets(asked, request_timeout=_TIMEOUT_S).items():
            try:
                found[place.topic, place.partition] = future.result().offset
            except KafkaException as error:
                if cause(error).code() not in _PASSING:
                    raise
        return found

    def _judge(self, place: _Place, error: KafkaError) -> None:
        """What came instead of a record."""
        code = error.code()
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001  # librdkafka's own codes are spelled so
            self._behind.discard(place)
        elif code in _AWAY and place in self._assigned:
            self._consumer.incremental_unassign([TopicPartition(*place)])
            self._assigned.discard(place)
            self._behind.discard(place)
            self._look_at = min(self._look_at, time.monotonic() + _LOOK_FOR_MISSING_S)
        elif code not in _PASSING:
            raise KafkaException(error)


def _place(message: Message) -> _Place:
    return message.topic() or "", message.partition() or 0
