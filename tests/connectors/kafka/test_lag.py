"""Lag as metrics show it: of what is read, whatever the flow's own consumer knows."""

from prometheus_client import REGISTRY

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.lag import ConsumerLag
from connectors.kafka.progress import Progress
from tests.kafka.client import wait_for, write


def lag(partition: int) -> float | None:
    labels = {"flow": "answer", "topic": "in", "partition": str(partition)}
    return REGISTRY.get_sample_value("headrace_consumer_lag_records", labels)


def test_lag_is_what_was_not_taken_up_and_ends_with_the_partition(embedded: EmbeddedKafka) -> None:
    embedded.create_topics(["in"])
    write(embedded.bootstrap, "in", [b"%d" % n for n in range(10)], partition=0)
    progress = Progress("answer")
    with ConsumerLag(embedded.bootstrap, {}, [progress]):
        progress.reads(("in", 0), 0)
        progress.reads(("in", 1), 0)
        wait_for("an answer of the broker", lambda: lag(1) is not None)  # on a busy machine not the first time
        assert (lag(0), lag(1)) == (10, 0)
        progress.took(("in", 0), 7, records=7)
        assert lag(0) == 3
        progress.reads_no_more(("in", 0))
        assert lag(0) is None
    assert lag(1) is None


def test_without_a_broker_metrics_go_on_without_lag() -> None:
    progress = Progress("answer")
    progress.reads(("in", 0), 0)
    with ConsumerLag("127.0.0.1:1", {}, [progress]):
        assert lag(0) is None
