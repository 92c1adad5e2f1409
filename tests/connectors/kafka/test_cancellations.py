"""Cancellations on a broker, to the process that reads them."""

from time import monotonic
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from connectors.cancellations import Cancellations
from connectors.kafka.cancellations import TOPIC, CancellationReader
from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord, outgoing
from schemas.cancellations import CancelRequested
from schemas.errors import Fatal
from tests.kafka.client import wait_for


def cancel(bootstrap: str, *job_ids: str, raw: bytes | None = None) -> None:
    outbox = ReliableProducer(bootstrap).outbox()
    for job_id in job_ids:
        outbox.send(outgoing(CancelRequested(job_id=job_id, reason=f"of {job_id}"), step="test"))
    if raw is not None:
        outbox.send(OutgoingRecord(TOPIC, b"k", raw))
    outbox.flush()


def test_what_was_cancelled_before_is_known_at_the_start_and_what_comes_later_soon() -> None:
    jobs = [f"j{n}" for n in range(50)]
    with EmbeddedKafka() as kafka:
        cancel(kafka.bootstrap, *jobs, raw=b"no JSON")
        known = Cancellations()
        with CancellationReader(kafka.bootstrap, None, known) as reader:
            reader.wait()
            assert [job for job in jobs if known.of("default", job) != f"of {job}"] == []
            cancel(kafka.bootstrap, "later")
            wait_for("the later one", lambda: known.of("default", "later"))


def test_a_missing_topic_holds_up_nothing_and_is_found_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.kafka.cancellations._LOOK_S", 0.2)
    with EmbeddedKafka() as kafka:
        kafka.create_topics(["another"])
        known = Cancellations()
        with CancellationReader(kafka.bootstrap, None, known) as reader:
            began = monotonic()
            reader.wait()
            assert monotonic() - began < 10.0
            cancel(kafka.bootstrap, "j")
            wait_for("the cancellation", lambda: known.of("default", "j"))


def test_a_topic_that_may_not_be_read_does_not_pass_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
            del timeout
            error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions={})})

        def close(self) -> None:
            return None

    monkeypatch.setattr("connectors.kafka.cancellations.Consumer", lambda _config: Refused())
    with (
        capture_logs() as logs,
        CancellationReader("localhost:1", None, Cancellations()) as reader,
        pytest.raises(Fatal, match=r"cancellations\.requested cannot be read: .*authorization"),
    ):
        reader.wait(10.0)
    assert [each["event"].split(";")[0] for each in logs] == ["cancellations cannot be read"]


def test_a_broker_that_is_gone_stops_neither_the_start_nor_the_end() -> None:
    with EmbeddedKafka() as kafka:
        bootstrap = kafka.bootstrap
    began = monotonic()
    with CancellationReader(bootstrap, None, Cancellations()) as reader:
        reader.wait(0.1)
    assert monotonic() - began < 20.0
