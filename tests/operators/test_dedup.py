"""What was seen is recognised, what is new never is, and memory stays bounded."""

import gc
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakValueDictionary

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka.record import Record
from connectors.kafka.recovery import RecoveryDirectory
from operators.dedup import Archive, DedupPolicy, Generations, Judged, Kept, Recent, Segment, dedup
from operators.digests import digest_of
from operators.envelope import Envelope, Job
from schemas.errors import Fatal
from schemas.event import utc_now
from schemas.requests import RequestSubmitted
from tests.chaos.members import free_addresses
from tests.memory_topics import Entry, record
from tests.operators.deduplicating import IDS, TIMES

POLICY = DedupPolicy(remember_s=100.0, buckets=3, segment_ids=2, bucket_ids=1000)


def enveloped(read: Record) -> tuple[str, Envelope[str]]:
    job_id = RequestSubmitted.model_validate_json(read.value or b"").job_id
    return job_id, Envelope(Job(job_id, "default"), job_id, read, read.timestamp)


def flow_of(entries: list[Entry], fresh: list[str], repeats: list[str], clock: Callable[[], datetime]) -> Dataflow:
    flow = Dataflow("test")
    read = op.input("read", flow, TestingSource(entries))

    parted = dedup("dedup", op.map("envelope", read, enveloped), lambda envelope: envelope.body, POLICY, clock)
    op.output("fresh", op.map("f", parted.fresh, lambda item: item[0]), TestingSink(fresh))
    op.output("repeats", op.map("r", parted.repeats, lambda item: item[0]), TestingSink(repeats))
    return flow


def requests(*job_ids: str) -> list[Entry]:
    return [record(RequestSubmitted(job_id=job_id, prompt="x")) for job_id in job_ids]


@pytest.fixture
def recovery(tmp_path: Path) -> RecoveryConfig:
    init_db_dir(tmp_path, 2)
    return RecoveryConfig(str(tmp_path))


def test_a_repeat_is_told_from_what_is_new_across_restarts_and_worker_counts(recovery: RecoveryConfig) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    fresh: list[str] = []
    repeats: list[str] = []
    entries = [*requests("a", "b", "a"), TestingSource.EOF(), *requests("b", "c"), TestingSource.EOF()]
    entries += requests("c", "a", "d")
    flow = flow_of(entries, fresh, repeats, lambda: now)
    for workers in (1, 3, 2):
        cluster_main(flow, [], 0, epoch_interval=timedelta(0), recovery_config=recovery, worker_count_per_proc=workers)
    assert (sorted(fresh), sorted(repeats)) == (["a", "b", "c", "d"], ["a", "a", "b", "c"])


def test_what_has_been_handed_on_is_recognised_from_the_first_message_after_a_restart(recovery: RecoveryConfig) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    fresh: list[str] = []
    repeats: list[str] = []
    ids = [f"job-{number}" for number in range(60)]
    flow = flow_of([*requests(*ids), *[TestingSource.EOF(), *requests(*ids)] * 3], fresh, repeats, lambda: now)
    for workers in (1, 3, 2, 1):
        cluster_main(flow, [], 0, epoch_interval=timedelta(0), recovery_config=recovery, worker_count_per_proc=workers)
    assert (sorted(fresh), sorted(repeats)) == (sorted(ids), sorted(ids * 3))


@given(
    numbers=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    ends=st.dictionaries(st.integers(0, 39), st.booleans(), max_size=4),
    batch_size=st.integers(1, 4),
)
@settings(max_examples=25)
def test_after_a_crash_a_message_repeats_what_came_before_it_and_nothing_else(
    numbers: list[int], ends: dict[int, bool], batch_size: int
) -> None:
    """What the crash has undone is new again, wherever its id had got to: else the message would be lost."""
    crashes = {place for place, crash in ends.items() if crash}

    def crashing(read: Record) -> tuple[str, Envelope[str]]:
        if read.offset in crashes:
            crashes.remove(read.offset)
            raise RuntimeError("a crash")
        return enveloped(read)

    entries: list[Entry] = []
    for place, number in enumerate(numbers):
        entries += [TestingSource.EOF()] * (ends.get(place) is False)
        entries.append(record(RequestSubmitted(job_id=str(number), prompt="x"), offset=place))
    judged: list[tuple[int, bool]] = []
    flow = Dataflow("test")
    read = op.input("read", flow, TestingSource(entries, batch_size))
    parted = dedup("dedup", op.map("envelope", read, crashing), lambda envelope: envelope.body, POLICY)
    fresh = op.map("fresh", parted.fresh, lambda item: (item[1].record.offset, True))
    repeats = op.map("repeats", parted.repeats, lambda item: (item[1].record.offset, False))
    op.output("judged", op.merge("both", fresh, repeats), TestingSink(judged))
    with TemporaryDirectory() as directory:
        for _ in range(len(ends) + 1):
            with RecoveryDirectory(Path(directory), partitions=1) as recovery, suppress(BytewaxRuntimeError):
                cluster_main(flow, [], 0, epoch_interval=timedelta(0), recovery_config=recovery.config())
    assert {place for place, _ in judged} == set(range(len(numbers)))
    assert [(place, new) for place, new in judged if new == (numbers[place] in numbers[:place])] == []


def test_in_a_cluster_what_has_been_handed_on_is_found_by_the_process_that_judges() -> None:
    """Bytewax gives equal keys of two steps to one worker: what this rests on, and nobody has promised."""
    addresses = free_addresses(3)
    command = [sys.executable, "-m", "tests.operators.deduplicating"]
    processes = [
        subprocess.Popen([*command, str(number), *addresses], stdout=subprocess.PIPE, text=True) for number in range(3)
    ]
    try:
        judged = [word for each in processes for word in each.communicate(timeout=60)[0].split()]
    finally:
        for each in processes:
            each.kill()
    assert (judged.count("new"), judged.count("repeat")) == (IDS, IDS * (TIMES - 1))


def test_a_message_that_comes_before_its_bucket_is_restored_waits_for_it() -> None:
    """In a cluster, whose processes restore one after the other; a snapshot and a crash in between included."""

    def message(number: int) -> tuple[str, Envelope[str]]:
        return enveloped(record(RequestSubmitted(job_id=str(number), prompt="x")))

    archive: Archive = WeakValueDictionary()
    one_bucket = DedupPolicy(buckets=1, segment_ids=2)
    recent = Recent(one_bucket, lambda envelope: envelope.body, utc_now, archive, None)
    kept = Kept(one_bucket, utc_now, archive, None)
    for number in range(3):
        emitted, _ = recent.on_batch([message(number)])
        for each in emitted:
            if isinstance(each, Segment):
                kept.on_batch([each])
    snapshots = recent.snapshot(), kept.snapshot()
    del kept
    gc.collect()

    def judged(emitted: list[Judged[str] | Segment]) -> list[tuple[str, bool]]:
        return [(each.key, each.new) for each in emitted if isinstance(each, Judged)]

    recent = Recent(one_bucket, lambda envelope: envelope.body, utc_now, archive, snapshots[0])
    assert recent.on_batch([message(0)]) == ([], False)
    assert recent.notify_at() is not None
    recent = Recent(one_bucket, lambda envelope: envelope.body, utc_now, archive, recent.snapshot())
    assert recent.on_batch([message(9), message(2)]) == ([], False)
    kept = Kept(one_bucket, utc_now, archive, snapshots[1])
    assert kept.segments == 1
    assert judged(recent.on_notify()[0]) == [("0", False), ("9", True), ("2", False)]
    assert recent.notify_at() is None
    assert judged(recent.on_batch([message(9), message(1)])[0]) == [("9", False), ("1", False)]


@given(steps=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 80)), max_size=200))
def test_new_ids_are_never_taken_for_seen_and_recent_ones_always_are(steps: list[tuple[int, float]]) -> None:
    ids = Generations(POLICY, 0.0)
    seen_at: dict[int, float] = {}
    now = 0.0
    for number, wait_s in steps:
        now += wait_s
        new = ids.add(digest_of(str(number)), now)
        if number not in seen_at:
            assert new
        elif now - seen_at[number] < POLICY.remember_s / 2:
            assert not new
        elif now - seen_at[number] >= 2 * POLICY.remember_s:
            assert new
        seen_at[number] = now
        ids = Generations.restored(POLICY, ids.snapshot)


def test_a_bucket_forgets_its_oldest_ids_rather_than_grow() -> None:
    policy = DedupPolicy(remember_s=1e9, buckets=1, bucket_ids=10)
    ids = Generations(policy, 0.0)
    for number in range(1000):
        assert ids.add(digest_of(str(number)), 1.0)
    _, _, younger, older = ids.snapshot
    assert len(younger) + len(older) <= 2 * 10 * 16
    assert not ids.add(digest_of("999"), 1.0)


def test_a_snapshot_of_another_release_stops_the_flow_and_says_so() -> None:
    with pytest.raises(Fatal, match="version 9"):
        Generations.restored(POLICY, (9, 0.0, b"", b""))
