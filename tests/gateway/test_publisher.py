"""Publishing from coroutines, on the embedded broker."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.record import OutgoingRecord
from gateway.publisher import Publisher, TooLarge
from schemas.errors import Unavailable

TOPIC = "requests.submitted"
DEADLINE_S = 20.0


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        kafka.create_topics([TOPIC])
        yield kafka


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def record(key: str = "k", value: bytes = b"{}") -> OutgoingRecord:
    return OutgoingRecord(TOPIC, key.encode(), value)


def records_at(bootstrap: str) -> int:
    """How many there are, by the ends of the partitions."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "count"})
    try:
        return sum(
            consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)[1] for partition in range(4)
        )
    finally:
        consumer.close()


async def until_refused(publisher: Publisher) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while publisher.reachable:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_what_was_published_is_durable_when_publish_returns(kafka: EmbeddedKafka) -> None:
    async def publish() -> int:
        async with Publisher(kafka.bootstrap) as publisher:
            await asyncio.gather(*(publisher.publish(record(str(number))) for number in range(500)))
            return await asyncio.to_thread(records_at, kafka.bootstrap)

    assert asyncio.run(publish()) == 500


def test_a_cancelled_publication_is_delivered_nevertheless(kafka: EmbeddedKafka) -> None:
    async def publish() -> None:
        async with Publisher(kafka.bootstrap) as publisher:
            await publisher.publish(record())
            task = asyncio.create_task(publisher.publish(record()))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(publish())
    assert records_at(kafka.bootstrap) == 2


def test_closing_delivers_what_is_on_its_way(kafka: EmbeddedKafka) -> None:
    async def publish() -> None:
        async with Publisher(kafka.bootstrap) as publisher:
            tasks = [asyncio.create_task(publisher.publish(record(str(number)))) for number in range(100)]
            await asyncio.sleep(0)
            await publisher.close()
            await asyncio.gather(*tasks)
            with pytest.raises(Unavailable, match="stopping"):
                await publisher.publish(record())

    asyncio.run(publish())
    assert records_at(kafka.bootstrap) == 100


def test_a_record_that_is_too_large_is_refused_and_the_next_one_goes_through(kafka: EmbeddedKafka) -> None:
    async def publish() -> None:
        async with Publisher(kafka.bootstrap) as publisher:
            with pytest.raises(TooLarge, match=TOPIC):
                await publisher.publish(record(value=b"x" * 9_000_000))
            await publisher.publish(record())

    asyncio.run(publish())


def test_while_kafka_is_out_publications_are_refused_at_once(kafka: EmbeddedKafka) -> None:
    async def publish() -> float:
        async with Publisher(kafka.bootstrap) as publisher:
            await publisher.publish(record())
            assert publisher.reachable
            kafka.__exit__(None, None, None)
            await until_refused(publisher)
            began = time.monotonic()
            with pytest.raises(Unavailable, match="out of reach") as refused:
                await publisher.publish(record())
            assert refused.value.retry_after_s is not None
            return time.monotonic() - began

    assert asyncio.run(publish()) < 0.1


def test_a_publisher_that_starts_without_kafka_says_so_within_its_timeout() -> None:
    async def publish() -> float:
        async with Publisher(f"127.0.0.1:{unused_port()}", timeout_s=2.0) as publisher:
            began = time.monotonic()
            with pytest.raises(Unavailable, match=r"send the same again|out of reach"):
                await publisher.publish(record())
            assert not publisher.reachable
            return time.monotonic() - began

    assert asyncio.run(publish()) < 5.0
