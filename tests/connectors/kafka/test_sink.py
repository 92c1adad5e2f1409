"""The producer behind the sinks, where no real broker is needed."""

import pytest

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord
from schemas.errors import Fatal, Retryable
from tests.kafka.client import values


def test_what_is_flushed_is_delivered(embedded: EmbeddedKafka) -> None:
    outbox = ReliableProducer(embedded.bootstrap).outbox()
    sent = [f"{number}".encode() for number in range(1000)]
    for value in sent:
        outbox.send(OutgoingRecord("out", b"key", value))
    outbox.flush()
    assert values(embedded.bootstrap, "out") == sent


def test_a_record_too_large_to_be_sent_at_all_is_refused_by_name(embedded: EmbeddedKafka) -> None:
    outbox = ReliableProducer(embedded.bootstrap).outbox()
    with pytest.raises(Fatal, match=r"topic out: a record of 9000000 bytes was not delivered"):
        outbox.send(OutgoingRecord("out", b"key", b"x" * 9_000_000))


def test_a_failure_is_raised_again_so_that_no_later_snapshot_can_pass_it(embedded: EmbeddedKafka) -> None:
    outbox = ReliableProducer(embedded.bootstrap).outbox()
    with pytest.raises(Fatal):
        outbox.send(OutgoingRecord("out", b"key", b"x" * 9_000_000))
    with pytest.raises(Fatal):
        outbox.flush()


def test_records_undelivered_within_the_timeout_raise_and_say_that_a_restart_resumes() -> None:
    with EmbeddedKafka() as broker:
        gone = broker.bootstrap
    outbox = ReliableProducer(gone, delivery_timeout_s=1.0).outbox()
    outbox.send(OutgoingRecord("out", b"key", b"value"))
    with pytest.raises(Retryable, match=r"topic out: .* within 1 s.*restart the flow"):
        outbox.flush()


def test_a_full_queue_makes_the_writer_wait_and_loses_nothing(embedded: EmbeddedKafka) -> None:
    outbox = ReliableProducer(embedded.bootstrap, {"queue.buffering.max.messages": "10"}).outbox()
    sent = [f"{number}".encode() for number in range(500)]
    for value in sent:
        outbox.send(OutgoingRecord("out", b"key", value))
    outbox.flush()
    assert values(embedded.bootstrap, "out") == sent
