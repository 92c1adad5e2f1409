"""What tests do to a broker from outside, with plain clients of confluent-kafka."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.kafka.client import watermarks

T = TypeVar("T")


def wait_for(what: str, found: Callable[[], T], timeout_s: float = 60.0) -> T:
    """The first true value of `found`; fails after the deadline, saying what did not come."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s:.0f} s")


def write(
    bootstrap: str, topic: str, values: Iterable[bytes], *, key: bytes | None = None, partition: int = -1
) -> None:
    """Produce values, each its own key if there is none, and wait until all are acknowledged."""
    failures: list[KafkaError] = []
    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": 1_000_000})
    for value in values:
        producer.produce(
            topic,
            key=key or value[:20],
            value=value,
            partition=partition,
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        producer.poll(0)
    assert producer.flush(60.0) == 0
    assert not failures


def read(bootstrap: str, topic: str) -> list[Message]:
    """Everything that is in a topic now, in order within each partition."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False}
    consumer = Consumer(settings)
    try:
        partitions = [
            TopicPartition(topic, part) for part in consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        left = {}
        for partition in partitions:
            low, high = watermarks(consumer, partition, timeout_s=30)
            partition.offset = low
            if high > low:
                left[partition.partition] = high
        consumer.assign(partitions)
        messages: list[Message] = []
        deadline = time.monotonic() + 60.0
        while left:
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            for message in consumer.consume(1000, timeout=0.1):
                assert message.error() is None, message.error()
                messages.append(message)
            for position in consumer.position(partitions):
                if position.partition in left and position.offset >= left[position.partition]:
                    del left[position.partition]
        return messages
    finally:
        consumer.close()


def values(bootstrap: str, topic: str) -> list[bytes]:
    """The values in a topic now."""
    return [message.value() or b"" for message in read(bootstrap, topic)]


def count(bootstrap: str, topic: str) -> int:
    """How many records a topic holds now, transactions and compaction apart."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "counter"})
    try:
        marks = [
            watermarks(consumer, TopicPartition(topic, partition), timeout_s=30)
            for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        return sum(high - low for low, high in marks)
    finally:
        consumer.close()


def committed(bootstrap: str, group_id: str, topic: str) -> dict[int, int]:
    """A group's committed offset per partition, as lag tools and autoscalers ask for it."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    request = ConsumerGroupTopicPartitions(group_id)
    found = admin.list_consumer_group_offsets([request])[group_id].result(10).topic_partitions
    return {place.partition: place.offset for place in found if place.topic == topic and place.offset >= 0}
