"""How far groups are: what they have committed, against what their topics hold. Joins no group, and commits nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its documented names

from connectors.kafka.client import ConnectionErrors, base_config, cause
from schemas.errors import Retryable

_TIMEOUT_S = 3.0  # of each of the few requests; a broker that is there answers in milliseconds


@dataclass(frozen=True)
class Position:
    """A group's place in one partition."""

    topic: str
    partition: int
    committed: int | None  # offset of the next record; None: the group has never committed here
    low: int  # first offset that is kept
    end: int  # the one after the last

    @property
    def lag(self) -> int:
        """Records that are kept and that the group has not committed."""
        return max(0, self.end - max(self.committed or 0, self.low))


class GroupPositions:
    """Asks about any number of groups, over connections that stay. Blocking; for one thread."""

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None = None) -> None:
        self._bootstrap = bootstrap
        self._errors = ConnectionErrors("lag")
        settings: dict[str, Any] = base_config(bootstrap, config or {}, self._errors)  # its stub knows of no callbacks
        self._config = dict(config or {})
        self._admin = AdminClient(settings)
        self._consumers: dict[str, Consumer] = {}  # by group

    def of(self, group_ids: Sequence[str], topics: Sequence[str]) -> dict[str, list[Position]]:
        """Each group's positions in all partitions of those of `topics` where it has committed anything.

        A group without any is left out; a topic that does not exist is no error. Raises Retryable if the broker does
        not answer.
        """
        try:
            known = self._admin.list_topics(timeout=_TIMEOUT_S).topics
            places = [
                TopicPartition(topic, partition)
                for topic in topics
                if topic in known
                for partition in known[topic].partitions
            ]
            if not places:
                return {}
            found = {group_id: self._committed(group_id, places) for group_id in group_ids}
            read = {place for committed in found.values() for place in _places_of_topics_in(committed, places)}
            low = self._offsets(read, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # its stub's omission
            end = self._offsets(read, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # same
        except KafkaException as error:
            self._admin.poll(0)  # hands over the connection errors, which say more than "timed out"
            reason = self._errors.last or cause(error)
            raise Retryable(f"Kafka at {self._bootstrap} did not say how far groups are: {reason.str()}") from error
        return {
            group_id: [
                Position(*place, committed.get(place), low[place], end[place])
                for place in _places_of_topics_in(committed, places)
            ]
            for group_id, committed in found.items()
            if committed
        }

    def _committed(self, group_id: str, places: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
        """Offsets by place, where there are any.

        By a consumer of that group, which joins nothing: librdkafka's admin client, asked the same, ends the process
        by SIGSEGV when a coordinator is new or moves (ListConsumerGroupOffsets, NOT_COORDINATOR; librdkafka 2.16).
        """
        if group_id not in self._consumers:
            settings = base_config(self._bootstrap, self._config, self._errors)
            self._consumers[group_id] = Consumer({**settings, "group.id": group_id, "enable.auto.commit": False})
        committed = self._consumers[group_id].committed(list(places), timeout=_TIMEOUT_S)
        return {(each.topic, each.partition): each.offset for each in committed if each.offset >= 0}

    def _offsets(self, places: set[tuple[str, int]], which: OffsetSpec) -> dict[tuple[str, int], int]:
        if not places:
            return {}
        asked = {TopicPartition(*place): which for place in places}
        futures = self._admin.list_offsets(asked, request_timeout=_TIMEOUT_S)
        return {(place.topic, place.partition): future.result().offset for place, future in futures.items()}


def _places_of_topics_in(
    committed: Mapping[tuple[str, int], int], places: Sequence[TopicPartition]
) -> list[tuple[str, int]]:
    """All partitions of the topics of which at least one has been committed."""
    topics = {topic for topic, _ in committed}
    return [(place.topic, place.partition) for place in places if place.topic in topics]
