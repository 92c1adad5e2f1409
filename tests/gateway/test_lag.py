"""How far behind flows are: from what their groups have committed, on a real broker, and over time."""

import time
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import Consumer, TopicPartition

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.positions import GroupPositions, Position
from gateway.lag import KEPT, Lag
from schemas.errors import Retryable
from tests.kafka.client import wait_for, write

REQUESTS, DECIDED = "requests.submitted", "reviews.decided"


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with EmbeddedKafka() as kafka:
        kafka.create_topics([REQUESTS, DECIDED])
        yield kafka.bootstrap


def commit(bootstrap: str, group_id: str, *places: TopicPartition) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group_id, "enable.auto.commit": False})
    try:
        consumer.commit(offsets=list(places), asynchronous=False)
    finally:
        consumer.close()


class Told:
    """Positions as a test wants them."""

    def __init__(self) -> None:
        self.positions: dict[str, list[Position]] = {}
        self.out = False

    def of(self, group_ids: Sequence[str], topics: Sequence[str]) -> dict[str, list[Position]]:
        del topics
        if self.out:
            raise Retryable("Kafka is out")
        return {group_id: self.positions[group_id] for group_id in group_ids if group_id in self.positions}


def at(committed: int | None, end: int, *, partition: int = 0, low: int = 0) -> Position:
    return Position(REQUESTS, partition, committed, low, end)


def test_a_flows_lag_is_what_its_group_has_not_committed_of_the_topics_it_reads(bootstrap: str) -> None:
    for partition in range(4):
        write(bootstrap, REQUESTS, [b"x"] * 10, partition=partition)
    commit(bootstrap, "h.answer", TopicPartition(REQUESTS, 0, 10), TopicPartition(REQUESTS, 1, 4))
    commit(bootstrap, "h.answer", TopicPartition(DECIDED, 0, 0))
    lag = Lag(GroupPositions(bootstrap), {"answer": ["h.answer"], "ingest": ["h.ingest"]})

    lag.sample(time.time())

    (answer,) = lag.flows()  # ingest has committed nothing
    assert (answer.flow, answer.lag) == ("answer", 26)
    assert [(each.topic, each.lag, each.end, each.committed) for each in answer.topics] == [
        (REQUESTS, 26, 40, 14),
        (DECIDED, 0, 0, 0),
    ]


def test_it_samples_by_itself_and_forgets_what_is_older_than_five_minutes(bootstrap: str) -> None:
    commit(bootstrap, "s.answer", TopicPartition(DECIDED, 0, 0))
    lag = Lag(GroupPositions(bootstrap), {"answer": ["s.answer"]}, period_s=0.001)
    lag.start()
    try:
        wait_for("as many samples as are kept", lambda: any(len(each.history) == KEPT for each in lag.flows()), 30)
        first = lag.flows()[0].history[0]
        wait_for("the oldest to go", lambda: lag.flows()[0].history[0] != first, 30)
        assert len(lag.flows()[0].history) == KEPT
    finally:
        lag.close()


def test_throughput_is_what_was_committed_since_the_last_sample() -> None:
    told = Told()
    lag = Lag(told, {"answer": ["g"]})
    for now, position in ((100.0, at(50, 100)), (105.0, at(80, 100)), (110.0, at(100, 100))):
        told.positions = {"g": [position]}
        lag.sample(now)

    (answer,) = lag.flows()

    assert answer.history == ((100.0, 50, 0.0), (105.0, 20, 6.0), (110.0, 0, 4.0))
    assert (answer.lag, answer.per_s) == (0, 4.0)


def test_an_outage_leaves_a_gap_and_the_last_sample_stands() -> None:
    told = Told()
    lag = Lag(told, {"answer": ["g"]}, period_s=0.001)
    told.positions = {"g": [at(1, 2)]}
    lag.start()
    try:
        wait_for("a sample", lag.flows)
        told.out = True
        wait_for("the samples to stop", lambda: _still(lag))
        before = lag.flows()[0]
        assert before.lag == 1

        told.out, told.positions = False, {"g": [at(2, 2)]}

        wait_for("samples to go on", lambda: lag.flows()[0].lag == 0)
    finally:
        lag.close()


def _still(lag: Lag) -> bool:
    last = lag.flows()[0].history[-1]
    time.sleep(0.05)
    return lag.flows()[0].history[-1] == last


def test_a_flow_in_slices_is_as_far_as_the_last_of_them() -> None:
    told = Told()
    lag = Lag(told, {"answer": ["g.0", "g.1", "g.2"]})
    told.positions = {"g.0": [at(90, 100)], "g.1": [at(40, 100)]}  # the third has never committed anything

    lag.sample(100.0)

    assert [flow.lag for flow in lag.flows()] == [60]


def test_a_topic_made_anew_is_no_negative_throughput() -> None:
    told = Told()
    lag = Lag(told, {"answer": ["g"]})
    for now, position in ((100.0, at(50, 100)), (105.0, at(3, 5))):
        told.positions = {"g": [position]}
        lag.sample(now)

    assert lag.flows()[0].history[-1] == (105.0, 2, 0.0)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        pytest.param(at(None, 10, low=4), 6, id="a partition that was never committed counts what is kept"),
        pytest.param(at(2, 10, low=4), 6, id="what retention took is not waited for"),
        pytest.param(at(12, 10), 0, id="an offset beyond the end is no negative lag"),
    ],
)
def test_lag_of_a_partition(position: Position, expected: int) -> None:
    assert position.lag == expected


def test_a_broker_that_is_gone_is_said_to_be_and_does_not_hold_up_the_end() -> None:
    with EmbeddedKafka() as kafka:
        positions = GroupPositions(kafka.bootstrap)
        assert positions.of(["g"], [REQUESTS]) == {}

    with pytest.raises(Retryable, match="did not say how far groups are"):
        positions.of(["g"], [REQUESTS])
