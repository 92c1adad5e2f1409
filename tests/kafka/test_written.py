"""What is left out of a replay because it is on its topic already, on Apache Kafka."""

import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord
from connectors.kafka.written import Written
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = pytest.mark.kafka

NewTopic = Callable[..., str]


def event(topic: str, number: int, source: str = "headrace/answer.infer") -> OutgoingRecord:
    headers = (("ce_id", f"id-{number}".encode()), ("ce_source", source.encode()))
    return OutgoingRecord(topic, b"key", b"value", headers)


def write(kafka: ApacheKafka, *records: OutgoingRecord) -> None:
    outbox = ReliableProducer(kafka.bootstrap).outbox()
    outbox.send(*records)
    outbox.flush()


def next_millisecond() -> float:
    """A moment that Kafka's timestamps tell from all earlier ones."""
    now_ms = int(time.time() * 1000)
    while int(time.time() * 1000) == now_ms:
        pass
    return time.time()


def test_what_was_written_since_the_snapshot_is_left_out_and_all_else_is_written(
    kafka: ApacheKafka, new_topic: NewTopic
) -> None:
    topic, another, empty = new_topic(), new_topic(), new_topic()
    write(kafka, event(topic, 1))
    snapshot = next_millisecond()
    write(kafka, event(topic, 2), event(another, 3))
    written = Written(kafka.bootstrap)
    written.resume((1, snapshot, (topic,)))
    replayed = [event(topic, 1), event(topic, 2), event(topic, 4), event(another, 3), event(another, 2)]
    assert written.left(replayed) == [event(topic, 1), event(topic, 4), event(another, 2)]
    assert written.left([event(empty, 2)]) == [event(empty, 2)]


def test_each_event_that_is_there_answers_for_one(kafka: ApacheKafka, new_topic: NewTopic) -> None:
    topic = new_topic()
    snapshot = time.time()
    write(kafka, event(topic, 1), event(topic, 1))
    written = Written(kafka.bootstrap)
    written.resume((1, snapshot, (topic,)))
    assert written.left([event(topic, 1)]) == []
    assert written.left([event(topic, 1), event(topic, 1)]) == [event(topic, 1)]


def test_an_event_of_another_step_and_a_record_without_an_id_say_nothing(
    kafka: ApacheKafka, new_topic: NewTopic
) -> None:
    topic = new_topic()
    nameless = OutgoingRecord(topic, b"key", b"value")
    snapshot = time.time()
    write(kafka, event(topic, 1, source="headrace/search.infer"), nameless)
    written = Written(kafka.bootstrap)
    written.resume((1, snapshot, (topic,)))
    assert written.left([event(topic, 1), nameless]) == [event(topic, 1), nameless]


def test_a_first_start_reads_nothing(kafka: ApacheKafka, new_topic: NewTopic) -> None:
    topic = new_topic()
    write(kafka, event(topic, 1))
    with capture_logs() as logs:
        assert Written(kafka.bootstrap).left([event(topic, 1)]) == [event(topic, 1)]
    assert logs == []


def test_a_topic_that_is_missing_is_left_to_the_producer_to_tell(kafka: ApacheKafka) -> None:
    written = Written(kafka.bootstrap)
    written.resume((1, time.time(), ()))
    assert written.left([event("no-such-topic", 1)]) == [event("no-such-topic", 1)]


def test_a_process_that_is_killed_in_the_middle_of_a_replay_leaves_the_rest_to_be_left_out(
    kafka: ApacheKafka, new_topic: NewTopic
) -> None:
    topic = new_topic()
    snapshot = time.time()
    write(kafka, event(topic, 1), event(topic, 2))
    second, third = Written(kafka.bootstrap), Written(kafka.bootstrap)
    second.resume((1, snapshot, (topic,)))
    assert second.left([event(topic, 1)]) == []
    third.resume(second.snapshot())
    assert third.left([event(topic, 2)]) == []
    assert third.left([event(topic, 1)]) == []  # of before its snapshot, if it comes again all the same
    fourth = Written(kafka.bootstrap)
    fourth.resume(third.snapshot())
    assert fourth.left([event(topic, 1)]) == [event(topic, 1)]


def test_a_flow_that_was_killed_before_its_first_snapshot_repeats_nothing(
    kafka: ApacheKafka, new_topic: NewTopic
) -> None:
    topic = new_topic()
    began = time.time()
    write(kafka, event(topic, 1))
    assert Written(kafka.bootstrap, begun_s=began).left([event(topic, 1)]) == []
