"""Creating topics on Apache Kafka."""

import uuid

import pytest

from connectors.kafka.topics import CreateReport, TopicSpec, create_topics, ensure_reachable
from schemas.errors import Fatal
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = pytest.mark.kafka


def test_creating_again_changes_nothing_and_reports_what_differs(kafka: ApacheKafka) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    first = TopicSpec(name, 3, {"cleanup.policy": "compact,delete", "retention.ms": "1000000"})
    assert create_topics(kafka.bootstrap, [first]) == CreateReport((name,), (), ())
    assert create_topics(kafka.bootstrap, [first]) == CreateReport((), (name,), ())
    other = TopicSpec(name, 5, {"cleanup.policy": "delete,compact", "retention.ms": "2"})
    report = create_topics(kafka.bootstrap, [other])
    assert report.differences == (f"{name}: 3 partitions, not 5", f"{name}: retention.ms is 1000000, not 2")
    assert create_topics(kafka.bootstrap, [first]) == CreateReport((), (name,), ())


def test_a_setting_that_the_broker_refuses_is_named(kafka: ApacheKafka) -> None:
    with pytest.raises(Fatal, match=r"topic bad was not created.*cleanup"):
        create_topics(kafka.bootstrap, [TopicSpec("bad", 1, {"cleanup.policy": "sometimes"})])


def test_a_broker_that_answers_is_reachable(kafka: ApacheKafka) -> None:
    ensure_reachable(kafka.bootstrap)
