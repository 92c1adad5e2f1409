"""One partition of the source, driven as bytewax drives it, on the embedded broker."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from bytewax.inputs import StatefulSourcePartition
from confluent_kafka import Producer

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.record import Record
from connectors.kafka.source import KafkaSource, Position
from connectors.kafka.stop import Stop
from schemas.errors import Fatal, Retryable
from tests.kafka.client import wait_for, write

Partition = StatefulSourcePartition[Record, Position]


def numbers(first: int, last: int) -> list[bytes]:
    return [f"{number}".encode() for number in range(first, last)]


def read(partition: Partition, records: int) -> list[Record]:
    """The next `records` records, and whatever comes in the same batch."""
    found: list[Record] = []

    def enough() -> bool:
        found.extend(partition.next_batch())
        return len(found) >= records

    wait_for(f"{records} records", enough)
    return found


@pytest.fixture
def source(embedded: EmbeddedKafka) -> Callable[..., KafkaSource]:
    """Make a source on the topic `in`."""
    embedded.create_topics(["in"])

    def make(**options: object) -> KafkaSource:
        settings = {"group_id": "test", "stop": Stop(), **options}
        return KafkaSource(embedded.bootstrap, ["in"], **settings)  # type: ignore[arg-type]  # a mixed dict

    return make


def test_every_partition_of_every_topic_is_a_part(source: Callable[..., KafkaSource]) -> None:
    assert source().list_parts() == ["in/0", "in/1", "in/2", "in/3"]


def test_no_more_than_the_cap_is_emitted_until_a_snapshot_ends_the_epoch(
    embedded: EmbeddedKafka, source: Callable[..., KafkaSource]
) -> None:
    write(embedded.bootstrap, "in", numbers(0, 100), partition=0)
    partition = source(max_per_epoch=30, max_batch=20).build_part("read", "in/0", None)
    assert [record.value for record in read(partition, 30)] == numbers(0, 30)
    assert list(partition.next_batch()) == []
    assert partition.snapshot() == (1, 30)
    assert [record.value for record in read(partition, 30)] == numbers(30, 60)


def test_an_epoch_is_bounded_by_the_bytes_of_all_partitions_together(
    embedded: EmbeddedKafka, source: Callable[..., KafkaSource]
) -> None:
    large = [bytes([65 + number]) * 100_000 for number in range(10)]
    for number in (0, 1):
        write(embedded.bootstrap, "in", large, partition=number)
    both = source(max_epoch_bytes=350_000, max_batch=1)
    first, second = (both.build_part("read", f"in/{number}", None) for number in (0, 1))
    assert [record.value for record in read(first, 2) + read(second, 2)] == large[:2] * 2
    assert (list(first.next_batch()), list(second.next_batch())) == ([], [])
    second.snapshot()
    assert [record.value for record in read(second, 2)] == large[2:4]
    assert list(first.next_batch()) == []
    first.close()
    assert [record.value for record in read(second, 2)] == large[4:6], "what a closed partition has emitted is done"


def test_a_snapshot_resumes_after_the_last_record_emitted(
    embedded: EmbeddedKafka, source: Callable[..., KafkaSource]
) -> None:
    write(embedded.bootstrap, "in", numbers(0, 100), partition=0)
    first = source(max_batch=10).build_part("read", "in/0", None)
    seen = read(first, 50)
    position = first.snapshot()
    first.close()
    second = source().build_part("read", "in/0", position)
    assert [record.value for record in seen + read(second, 100 - len(seen))] == numbers(0, 100)


def test_without_a_snapshot_the_latest_start_skips_what_is_there(
    embedded: EmbeddedKafka, source: Callable[..., KafkaSource]
) -> None:
    write(embedded.bootstrap, "in", numbers(0, 10), partition=0)
    partition = source(start="latest").build_part("read", "in/0", None)
    write(embedded.bootstrap, "in", numbers(10, 20), partition=0)
    assert [record.value for record in read(partition, 10)] == numbers(10, 20)


def test_a_record_keeps_every_byte_headers_and_time(
    embedded: EmbeddedKafka, source: Callable[..., KafkaSource]
) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap})
    producer.produce(
        "in",
        b"\xff value",
        b"\x00 key",
        partition=2,
        timestamp=1_700_000_000_123,
        headers=[("ce_id", b"7"), ("none", None)],
    )
    producer.produce("in", partition=2)
    assert producer.flush(10.0) == 0
    full, empty = read(source().build_part("read", "in/2", None), 2)
    when = datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
    assert full == Record("in", 2, 0, b"\x00 key", b"\xff value", (("ce_id", b"7"), ("none", b"")), when)
    assert (empty.offset, empty.key, empty.value, empty.headers) == (1, None, None, ())


def test_a_stop_ends_the_input(embedded: EmbeddedKafka, source: Callable[..., KafkaSource]) -> None:
    write(embedded.bootstrap, "in", numbers(0, 10), partition=0)
    stop = Stop()
    partition = source(stop=stop).build_part("read", "in/0", None)
    read(partition, 10)
    stop.request()
    with pytest.raises(StopIteration):
        partition.next_batch()
    assert partition.snapshot() == (1, 10)


def test_an_idle_partition_asks_to_be_woken_a_moment_later(source: Callable[..., KafkaSource]) -> None:
    partition = source().build_part("read", "in/0", None)
    assert list(partition.next_batch()) == []
    awake = partition.next_awake()
    assert awake is not None
    assert awake < datetime.now(UTC) + timedelta(seconds=1)


def test_a_snapshot_of_another_version_is_refused(source: Callable[..., KafkaSource]) -> None:
    with pytest.raises(Fatal, match="version 2"):
        source().build_part("read", "in/0", (2, 10))


def test_a_slice_for_which_no_partition_is_left_says_so_instead_of_ending_as_if_all_were_done(
    source: Callable[..., KafkaSource],
) -> None:
    with pytest.raises(Fatal, match="topic in has 4 partitions, and none is for this slice; HEADRACE_SLICES"):
        source(only=lambda partition: partition > 3).list_parts()


def test_a_missing_topic_is_named(embedded: EmbeddedKafka) -> None:
    with pytest.raises(Fatal, match=r"topic nowhere cannot be read .* headrace topics create"):
        KafkaSource(embedded.bootstrap, ["nowhere"], group_id="test", stop=Stop()).list_parts()


def test_an_unreachable_broker_is_named() -> None:
    with EmbeddedKafka() as broker:
        gone = broker.bootstrap
    with pytest.raises(Retryable, match=f"Kafka at {gone} did not answer within 10 s"):
        KafkaSource(gone, ["in"], group_id="test", stop=Stop()).list_parts()


def test_a_source_closes_though_a_commit_is_on_its_way_to_a_broker_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by a kill of `headrace up`: its flows waited for their broker for ever."""
    monkeypatch.setattr("connectors.kafka.source.CLOSE_S", 0.5)
    with EmbeddedKafka() as kafka:
        kafka.create_topics(["in"])
        write(kafka.bootstrap, "in", numbers(0, 10), partition=0)
        source = KafkaSource(kafka.bootstrap, ["in"], group_id="test", stop=Stop())
        partition = source.build_part("read", "in/0", None)
        read(partition, 10)
        partition.snapshot()
    partition.snapshot()  # commits what the former one has
    closing = threading.Thread(target=partition.close, daemon=True)
    closing.start()
    closing.join(20.0)
    assert not closing.is_alive()
