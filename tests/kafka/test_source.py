"""The source against Apache Kafka."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.kafka.positions import GroupPositions, Position
from connectors.kafka.topics import group_lag
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import committed, count, values, wait_for, write
from tests.kafka.relay import Relay

pytestmark = pytest.mark.kafka


def numbers(first: int, last: int) -> list[bytes]:
    return [f"{number:06d}".encode() for number in range(first, last)]


def test_sigterm_takes_a_last_snapshot_so_that_a_restart_neither_loses_nor_repeats(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic()
    flow = relay(kafka.bootstrap, source, sink, epoch_s=5.0)
    write(kafka.bootstrap, source, numbers(0, 500))
    first = flow.start()
    wait_for("the first half", lambda: count(kafka.bootstrap, sink) == 500)
    assert flow.stop(first) == 0, flow.printed()
    write(kafka.bootstrap, source, numbers(500, 1000))
    second = flow.start()
    wait_for("the second half", lambda: count(kafka.bootstrap, sink) >= 1000)
    assert flow.stop(second) == 0, flow.printed()
    assert sorted(values(kafka.bootstrap, sink)) == numbers(0, 1000)


def test_kill_minus_9_at_random_moments_loses_nothing(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic()
    flow = relay(kafka.bootstrap, source, sink, max_per_epoch=50)
    write(kafka.bootstrap, source, numbers(0, 3000))
    moments = random.Random(7)  # noqa: S311  # not for secrets
    for _ in range(5):
        process = flow.start()
        aim = count(kafka.bootstrap, sink) + moments.randint(1, 300)
        wait_for("progress before the kill", partial(_holds, kafka.bootstrap, sink, aim))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    last = flow.start()
    wait_for("everything", lambda: set(values(kafka.bootstrap, sink)) == set(numbers(0, 3000)))
    assert flow.stop(last) == 0, flow.printed()


def test_lag_is_visible_to_an_admin_client_and_returns_to_zero(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic()
    flow = relay(kafka.bootstrap, source, sink)
    write(kafka.bootstrap, source, numbers(0, 300))
    assert sum(group_lag(kafka.bootstrap, f"g-{source}", [source]).values()) == 300
    flow.start()
    wait_for("all committed", lambda: sum(committed(kafka.bootstrap, f"g-{source}", source).values()) == 300)
    assert sum(group_lag(kafka.bootstrap, f"g-{source}", [source]).values()) == 0


def test_an_idle_flows_positions_come_to_the_ends_and_a_group_that_is_none_is_no_error(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    """What is committed trails by a snapshot: without a further record, the next snapshot commits it."""
    source, sink = new_topic(), new_topic()
    flow = relay(kafka.bootstrap, source, sink)
    write(kafka.bootstrap, source, numbers(0, 300))
    flow.start()
    positions = GroupPositions(kafka.bootstrap)

    def found() -> list[Position]:
        groups = positions.of([f"g-{source}", "no-such-group"], [source, "no-such-topic"])
        assert groups.keys() <= {f"g-{source}"}
        return groups.get(f"g-{source}", [])

    wait_for("nothing left", lambda: sum(each.committed or 0 for each in found()) == 300)
    assert [each.lag for each in found()] == [0, 0, 0, 0]
    assert sum(each.end for each in found()) == 300


def test_committed_offsets_never_claim_more_than_a_restart_would_resume_from(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay], tmp_path: Path
) -> None:
    source, sink = new_topic(), new_topic()
    resumed_at = tmp_path / "resumed_at"
    flow = relay(kafka.bootstrap, source, sink, max_per_epoch=20, epoch_s=0.05, resumed_at=str(resumed_at))
    write(kafka.bootstrap, source, numbers(0, 4000))
    for kill in range(1, 6):
        process = flow.start()
        wait_for("some commits", partial(_has_committed, kafka.bootstrap, f"g-{source}", source, kill * 300))
        process.kill()
        process.wait()
        claimed = committed(kafka.bootstrap, f"g-{source}", source)
        resumed_at.unlink()
        process = flow.start()
        lines = wait_for("four partitions to resume", lambda: _lines(resumed_at, 4))
        process.kill()
        process.wait()
        positions = {int(place.rpartition("/")[2]): int(offset) for place, offset in lines}
        assert {part: offset for part, offset in claimed.items() if offset > positions[part]} == {}


def _holds(bootstrap: str, topic: str, at_least: int) -> bool:
    return count(bootstrap, topic) >= at_least


def _has_committed(bootstrap: str, group_id: str, topic: str, at_least: int) -> bool:
    return sum(committed(bootstrap, group_id, topic).values()) >= at_least


def _lines(path: Path, expected: int) -> list[tuple[str, str]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[0], line.split()[1]) for line in lines] if len(lines) == expected else []


def test_an_offset_out_of_range_stops_the_flow_loudly(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(partitions=1), new_topic()
    flow = relay(kafka.bootstrap, source, sink)
    write(kafka.bootstrap, source, numbers(0, 100))
    process = flow.start()
    wait_for("the first hundred", lambda: count(kafka.bootstrap, sink) == 100)
    assert flow.stop(process) == 0, flow.printed()
    write(kafka.bootstrap, source, numbers(100, 300))
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    (deleted,) = admin.delete_records([TopicPartition(source, 0, 200)]).values()
    deleted.result(10)

    assert flow.start().wait(60.0) == 1
    assert f"{source}/0: offset 100, where the flow must resume, is not in the topic" in flow.printed()
    assert count(kafka.bootstrap, sink) == 100


def test_a_broker_that_stops_and_starts_is_waited_out(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic()
    flow = relay(kafka.bootstrap, source, sink, max_per_epoch=50)
    write(kafka.bootstrap, source, numbers(0, 3000))
    process = flow.start()
    wait_for("the middle", lambda: count(kafka.bootstrap, sink) > 300)
    kafka.stop()
    try:
        assert process.poll() is None, flow.printed()
    finally:
        kafka.start()
    wait_for("everything", lambda: set(values(kafka.bootstrap, sink)) == set(numbers(0, 3000)))
    assert flow.stop(process) == 0, flow.printed()


def test_a_crowded_partition_is_paused_without_loss_repeat_or_disorder(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(partitions=4), new_topic(partitions=1)
    crowd = [value + b"." * 2000 for value in numbers(0, 8000)]  # 16 MB; a source buffers 2 MB per partition
    write(kafka.bootstrap, source, crowd, key=b"crowd", partition=0)
    write(kafka.bootstrap, source, numbers(8000, 8100), key=b"few", partition=1)
    flow = relay(kafka.bootstrap, source, sink, max_per_epoch=200, epoch_s=0.1)
    process = flow.start()
    wait_for("everything", lambda: count(kafka.bootstrap, sink) >= 8100)
    assert flow.stop(process) == 0, flow.printed()
    found = [value[:6] for value in values(kafka.bootstrap, sink)]
    assert [value for value in found if value < b"008000"] == numbers(0, 8000)
    assert [value for value in found if value >= b"008000"] == numbers(8000, 8100)


def test_workers_share_the_partitions_of_a_process(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(partitions=16), new_topic()
    write(kafka.bootstrap, source, numbers(0, 2000))
    flow = relay(kafka.bootstrap, source, sink, workers=3)
    process = flow.start()
    wait_for("everything", lambda: count(kafka.bootstrap, sink) >= 2000)
    assert flow.stop(process) == 0, flow.printed()
    assert Counter(values(kafka.bootstrap, sink)) == Counter(numbers(0, 2000))


def test_offsets_that_cannot_be_committed_are_a_warning_and_the_flow_goes_on(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic()
    intruder = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": f"g-{source}"})
    intruder.subscribe([sink])  # a group with members refuses commits of anybody else
    try:
        wait_for("the group to have a member", lambda: intruder.poll(0.1) is None and intruder.assignment())
        write(kafka.bootstrap, source, numbers(0, 200))
        flow = relay(kafka.bootstrap, source, sink)
        process = flow.start()
        wait_for("everything", lambda: (intruder.poll(0), count(kafka.bootstrap, sink) == 200)[1])
        wait_for("a warning", lambda: "offset not committed" in flow.printed())
        assert flow.stop(process) == 0, flow.printed()
    finally:
        intruder.close()


def test_a_missing_topic_is_named_with_the_way_out(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    flow = relay(kafka.bootstrap, "no-such-topic", new_topic())
    assert flow.start().wait(60.0) == 1
    assert "topic no-such-topic cannot be read" in flow.printed()
    assert "headrace topics create" in flow.printed()


def test_a_second_process_on_the_same_recovery_directory_refuses_to_start(
    kafka: ApacheKafka, new_topic: Callable[..., str], relay: Callable[..., Relay]
) -> None:
    source, sink = new_topic(), new_topic()
    write(kafka.bootstrap, source, numbers(0, 10))
    flow = relay(kafka.bootstrap, source, sink)
    first = flow.start()
    wait_for("the first to run", lambda: count(kafka.bootstrap, sink) == 10)
    assert flow.start().wait(60.0) == 1
    assert f"recovery directory {flow.options['recovery']} is in use" in flow.printed()
    assert flow.stop(first) == 0, flow.printed()
    assert count(kafka.bootstrap, sink) == 10
