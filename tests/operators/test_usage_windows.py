"""What tenants have used: the windows add up to the calls, exactly, whatever happens."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bytewax.testing import TestingSource, run_main
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.usage import latest
from connectors.event_loop import EventLoop
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.stop import Stop
from flows import usage
from operators import usage_windows
from operators.runtime import Runtime
from operators.usage_windows import KEPT_S, WINDOWS_S, TenantWindows
from schemas.dead_letter import REDRIVE_HEADER
from schemas.errors import Fatal, Refused
from schemas.usage import TokensUsed, UsageWindowed
from tests.memory_topics import Entry, MemoryTopics, record

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def call(number: int, *, at_s: float = 0.0, tokens: int = 10, model: str | None = "m", tenant: str = "t") -> TokensUsed:
    return TokensUsed(
        job_id=f"j{number}",
        tenant=tenant,
        admission_id=f"a{number}",
        root_job_id=f"j{number}",
        model=model,
        prompt_tokens=tokens,
        completion_tokens=1 if tokens else 0,
        used_at=T0 + timedelta(seconds=at_s),
    )


def sums(published: list[UsageWindowed]) -> dict[int, Counter[str]]:
    """Over the version that holds of each window, as `headrace usage` reads the topic, by length."""
    found = {window_s: Counter[str]() for window_s in WINDOWS_S}
    for each in latest(record(window, offset=n) for n, window in enumerate(published)):
        found[each.window_s].update(calls=each.calls, tokens=each.prompt_tokens + each.completion_tokens)
    return found


TIMES = st.integers(0, 5 * 86_400)
CALLS = st.lists(st.tuples(TIMES, st.integers(0, 1000), st.sampled_from(["m", "n"])), max_size=30)


@given(CALLS, st.lists(st.sampled_from(["batch", "snapshot", "crash"]), max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_windows_of_each_length_add_up_to_the_calls_across_crashes(
    calls: list[tuple[int, int, str]], happenings: list[str]
) -> None:
    """After a crash the events since the snapshot come again, in other batches; what was written stays written."""
    windows = TenantWindows("t")
    snapshot, since, published = windows.snapshot, list[TokensUsed](), list[UsageWindowed]()
    for number, (at_s, tokens, model) in enumerate(calls):
        used = call(number, at_s=at_s, tokens=tokens, model=model)
        windows.add(used)
        since.append(used)
        match happenings[number % len(happenings)] if happenings else "batch":
            case "batch":
                published += windows.due(used.used_at.timestamp())
            case "snapshot":
                published += windows.due(used.used_at.timestamp())
                snapshot, since = windows.snapshot, []
            case _:
                windows = TenantWindows.restored("t", snapshot)
                for again in since:
                    windows.add(again)
    published += windows.due(T0.timestamp())
    counted = [tokens + 1 if tokens else 0 for _, tokens, _ in calls]
    for found in sums(published).values():
        assert found["tokens"] == sum(counted)
        assert found["calls"] == len(calls)


def test_a_late_call_makes_a_new_version_of_a_closed_window() -> None:
    windows = TenantWindows("t")
    windows.add(call(1))
    windows.due(T0.timestamp())
    windows.add(call(2, at_s=3700))
    closed = [each for each in windows.due(T0.timestamp()) if each.window_s == 3600 and each.closed]
    assert [(each.calls, each.version) for each in closed] == [(1, 3)]
    windows.add(call(3, at_s=10))
    (late,) = [each for each in windows.due(T0.timestamp()) if each.window_s == 3600]
    assert (late.calls, late.version, late.closed) == (2, 5, True)


def test_a_version_written_before_a_crash_holds_over_no_fuller_one_written_after_it() -> None:
    windows = TenantWindows("t")
    snapshot = windows.snapshot
    published: list[UsageWindowed] = []
    for number in range(5):  # five batches, five versions
        windows.add(call(number))
        published += windows.due(T0.timestamp())
    windows = TenantWindows.restored("t", snapshot)
    for number in range(6):  # the same and one more in a single batch
        windows.add(call(number))
    published += windows.due(T0.timestamp())
    assert sums(published)[3600] == Counter(calls=6, tokens=66)


def test_a_tenant_that_falls_silent_has_its_windows_closed_by_the_clock() -> None:
    windows = TenantWindows("t")
    windows.add(call(1))
    windows.due(T0.timestamp())
    end = windows.next_end()
    assert end == T0.timestamp() + 3660
    (closed,) = windows.due(end)
    assert (closed.window_s, closed.closed, closed.calls) == (3600, True, 1)


def test_a_call_that_used_nothing_is_in_no_window() -> None:
    windows = TenantWindows("t")
    windows.add(call(1, tokens=0, model=None))
    assert windows.due(T0.timestamp()) == []


def test_a_call_older_than_what_is_kept_is_refused_and_not_counted() -> None:
    windows = TenantWindows("t")
    windows.add(call(1, at_s=KEPT_S))
    windows.add(call(2, at_s=1))
    with pytest.raises(Refused, match="no longer kept"):
        windows.add(call(3, at_s=-1))
    assert sums(windows.due(T0.timestamp()))[3600]["calls"] == 2


def test_a_snapshot_of_another_release_is_refused() -> None:
    with pytest.raises(Fatal, match="snapshot version 99"):
        TenantWindows.restored("t", (99, 0.0, []))


def run(entries: list[Entry], directory: RecoveryDirectory) -> MemoryTopics:
    topics = MemoryTopics(entries)
    with EventLoop() as loop:
        run_main(usage.build(Runtime(topics, loop, Stop())), recovery_config=directory.config(), epoch_interval=None)
    return topics


def test_a_deploy_closes_no_window_and_a_repeated_call_counts_once(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    calls = [call(n).model_copy(update={"used_at": now}) for n in range(4)]
    entries: list[Entry] = [record(each, offset=n) for n, each in enumerate([*calls[:3], calls[1]])]
    entries += [TestingSource.EOF(), record(calls[3], offset=4), record(calls[0], offset=5)]
    published: list[UsageWindowed] = []
    with RecoveryDirectory(tmp_path / "usage") as directory:
        for _ in range(2):
            topics = run(entries, directory)
            published += [UsageWindowed.model_validate(each) for each in topics.on("usage.windows")]
    assert not any(each.closed for each in published)
    assert sums(published)[86_400] == Counter(calls=4, tokens=44)


def test_a_call_of_the_far_future_is_refused_and_counts_once_when_it_is_redriven_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no other call too late, and is not taken for one that was counted."""
    now = datetime.now(UTC)
    early, present = (call(n).model_copy(update={"used_at": now + timedelta(hours=2 - 2 * n)}) for n in range(2))
    entries: list[Entry] = [record(early, offset=0), record(present, offset=1)]
    with RecoveryDirectory(tmp_path / "usage") as directory:
        before = run(entries, directory)
        monkeypatch.setattr(usage_windows, "utc_now", lambda: now + timedelta(hours=2))
        entries += [replace(record(early, offset=2), headers=((REDRIVE_HEADER, b"1"),)), record(early, offset=3)]
        after = run(entries, directory)
    (letter,) = before.dead_letters()
    assert "in the future" in letter.message
    assert not letter.ends_job
    assert after.dead_letters() == []
    published = [
        UsageWindowed.model_validate(each) for topics in (before, after) for each in topics.on("usage.windows")
    ]
    assert sums(published)[3600] == Counter(calls=2, tokens=22)
