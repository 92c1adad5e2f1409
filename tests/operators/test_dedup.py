"""What was seen is recognised, what is new never is, and memory stays bounded."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main
from hypothesis import given
from hypothesis import strategies as st

from operators.dedup import DedupPolicy, Generations, dedup, digest_of
from operators.envelope import Envelope, Job
from schemas.errors import Fatal
from schemas.requests import RequestSubmitted
from tests.memory_topics import Entry, record

POLICY = DedupPolicy(remember_s=100.0, buckets=8, bucket_ids=1000)


def flow_of(entries: list[Entry], fresh: list[str], repeats: list[str], clock: Callable[[], datetime]) -> Dataflow:
    flow = Dataflow("test")
    read = op.input("read", flow, TestingSource(entries))

    def enveloped(at: object) -> tuple[str, Envelope[str]]:
        job_id = RequestSubmitted.model_validate_json(at.value).job_id  # type: ignore[attr-defined]  # a Record
        return job_id, Envelope(Job(job_id, "default"), job_id, at, clock())  # type: ignore[arg-type]  # same

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
