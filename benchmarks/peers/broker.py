"""Apache Kafka for one run of a system: empty topics, ready to be used, and gone afterwards."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.peers.environments import Unavailable
from connectors.kafka.client import watermarks
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.kafka.apache_kafka import ApacheKafka

PARTITIONS = 8
_READY_S = 120.0


@contextmanager
def kafka(directory: Path, *more: str) -> Iterator[str]:
    """A broker with Headrace's topics and `more`, each partition with its leader; the address to reach it at."""
    broker = ApacheKafka(directory / "kafka")
    specs = [TopicSpec(topic.name, PARTITIONS, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
    specs += [TopicSpec(name, PARTITIONS) for name in more]
    try:
        broker.create()
        create_topics(broker.bootstrap, specs)
        _wait_led(broker.bootstrap, [spec.name for spec in specs])
        yield broker.bootstrap
    finally:
        broker.stop()


def _wait_led(bootstrap: str, topics: Sequence[str]) -> None:
    """On a busy machine a new partition is without its leader for seconds."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "look", "enable.auto.commit": False})
    until = time.monotonic() + _READY_S
    try:
        for place in [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]:
            while True:
                with suppress(KafkaException):
                    watermarks(consumer, place, timeout_s=10)
                    break
                if time.monotonic() > until:
                    raise Unavailable(f"{place.topic} has no leader after {_READY_S:.0f} s")
                time.sleep(0.2)
    finally:
        consumer.close()
