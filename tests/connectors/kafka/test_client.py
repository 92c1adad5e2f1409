"""What all Kafka clients share."""

from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from connectors.kafka.client import watermarks


class StartingBroker:
    """Answers like a broker that has just started: with errors, then with offsets."""

    def __init__(self, *codes: int) -> None:
        self._errors = [KafkaException(KafkaError(code)) for code in codes]

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        del place, timeout
        if self._errors:
            raise self._errors.pop(0)
        return 3, 7


def test_a_partition_that_a_starting_broker_does_not_know_yet_is_waited_for() -> None:
    broker = StartingBroker(KafkaError._UNKNOWN_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)  # noqa: SLF001  # its code
    assert watermarks(cast("Consumer", broker), TopicPartition("t", 0), timeout_s=10) == (3, 7)


def test_what_does_not_pass_by_itself_is_raised_at_once() -> None:
    broker = StartingBroker(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException):
        watermarks(cast("Consumer", broker), TopicPartition("t", 0), timeout_s=10)
