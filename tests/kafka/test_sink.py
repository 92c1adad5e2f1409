"""The sink against Apache Kafka."""

from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]  # its documented names, not marked as exported

from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord
from schemas.errors import Fatal
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import count, read, values, wait_for, write
from tests.kafka.relay import Relay

pytestmark = pytest.mark.kafka


def test_a_refused_record_stops_the_flow_and_is_delivered_once_the_topic_takes_it(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic(max_message_bytes="2000")
    large = b"large" * 1000
    write(kafka.bootstrap, source, [b"small", large])
    flow = relay(kafka.bootstrap, source, sink)
    assert flow.start().wait(60.0) == 1
    assert f"topic {sink}: a record of 5000 bytes was not delivered" in flow.printed()
    assert "max.message.bytes" in flow.printed()

    entry = ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, sink, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.incremental_alter_configs([resource])[resource].result(10)
    second = flow.start()
    wait_for("both records", lambda: set(values(kafka.bootstrap, sink)) == {b"small", large})
    assert flow.stop(second) == 0, flow.printed()


def test_an_unknown_topic_stops_the_flow_and_is_named(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source = new_topic()
    write(kafka.bootstrap, source, [b"value"])
    flow = relay(kafka.bootstrap, source, "no-such-topic")
    assert flow.start().wait(90.0) == 1
    assert "topic no-such-topic: a record of 5 bytes was not delivered" in flow.printed()


def test_a_tail_of_60_steps_delivers_everything_at_a_clean_end(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(partitions=1), new_topic()
    everything = [f"{number}".encode() for number in range(5000)]
    flow = relay(kafka.bootstrap, source, sink, steps=60, epoch_s=0.1, max_per_epoch=500)
    process = flow.start()
    write(kafka.bootstrap, source, everything)
    wait_for("the flow to be in the middle", lambda: count(kafka.bootstrap, sink) > 0)
    assert flow.stop(process) == 0, flow.printed()
    # What the last snapshot calls read has been delivered: the next run brings the rest, and nothing twice.
    second = flow.start()
    wait_for("the rest", lambda: count(kafka.bootstrap, sink) >= 5000)
    assert flow.stop(second) == 0, flow.printed()
    assert sorted(values(kafka.bootstrap, sink)) == sorted(everything)


def test_records_arrive_whole_and_in_order_per_key(kafka: ApacheKafka, new_topic: Callable[..., str]) -> None:
    topic = new_topic(partitions=4)
    outboxes = [ReliableProducer(kafka.bootstrap).outbox()] * 2
    sent = [
        OutgoingRecord(topic, f"key-{number % 7}".encode(), f"{number}".encode(), (("ce_id", f"{number}".encode()),))
        for number in range(700)
    ]
    for number, record in enumerate(sent):
        outboxes[number % 2].send(record)
    for outbox in outboxes:
        outbox.flush()
    arrived = [
        OutgoingRecord(topic, message.key() or b"", message.value() or b"", tuple(message.headers() or []))  # type: ignore[arg-type]  # pairs of str and bytes
        for message in read(kafka.bootstrap, topic)
    ]
    for key in {record.key for record in sent}:
        assert [record for record in arrived if record.key == key] == [record for record in sent if record.key == key]


def test_a_failure_stays_with_the_writer_whose_record_failed(kafka: ApacheKafka, new_topic: Callable[..., str]) -> None:
    fine, tiny = new_topic(), new_topic(max_message_bytes="500")
    producer = ReliableProducer(kafka.bootstrap)
    failing, working = producer.outbox(), producer.outbox()
    failing.send(OutgoingRecord(tiny, b"key", b"x" * 5000))
    working.send(OutgoingRecord(fine, b"key", b"value"))
    working.flush()
    assert values(kafka.bootstrap, fine) == [b"value"]
    with pytest.raises(Fatal, match=tiny):
        failing.flush()
