"""What becomes of one attempt."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.deliver import Attempted, RetryPolicy, conclude, message
from schemas.callbacks import CallbackDeferred
from schemas.errors import GaveUp, HeadraceError, Isolated, Poison

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STEADY = RetryPolicy(jitter=0.0)


def callback(**changed: object) -> CallbackDeferred:
    return CallbackDeferred.model_validate(
        {
            "job_id": "j",
            "callback_id": "c",
            "url": "https://a.org/",
            "ending": "job.completed",
            "data": {"text": "Gefälle"},
            "ended_at": NOW.astimezone(timezone(timedelta(hours=2))),
            "attempts": 0,
            "not_before": NOW,
            "failure": "",
        }
        | changed
    )


def after(error: HeadraceError | None, former: int = 0, policy: RetryPolicy = STEADY) -> CallbackDeferred | None:
    return conclude(Attempted(callback(attempts=former), error), policy, NOW, former=former)


def test_the_body_names_what_happened_when_and_is_the_same_at_every_attempt() -> None:
    assert json.loads(message(callback())) == {
        "type": "job.completed",
        "timestamp": "2026-01-02T03:04:05Z",
        "data": {"text": "Gefälle"},
    }
    assert message(callback()) == message(callback(attempts=7, failure="503"))
    read_back = CallbackDeferred.model_validate_json(callback().encode())
    assert message(read_back) == message(callback())


def test_what_is_delivered_is_over() -> None:
    assert after(None) is None


def test_attempts_go_on_for_a_day_and_then_a_person_may_decide() -> None:
    waits = []
    for former in range(len(STEADY.waits_s)):
        again = after(Isolated("503"), former)
        assert again is not None
        assert (again.attempts, again.failure) == (former + 1, "503")
        waits.append((again.not_before - NOW).total_seconds())
    assert waits == [5, 30, 120, 600, 1800, 3600, 10_800, 21_600, 43_200]
    assert 22 * 3600 < sum(waits) < 24 * 3600
    with pytest.raises(GaveUp, match="at 10 attempts: 503"):
        after(Isolated("503"), 9)


def test_a_final_refusal_is_not_tried_again() -> None:
    with pytest.raises(Poison, match="410"):
        after(Poison("410"))


@given(former=st.integers(0, 8), asked=st.none() | st.floats(0, 1e12))
def test_a_receivers_wish_is_obeyed_within_bounds(former: int, asked: float | None) -> None:
    policy = RetryPolicy()
    again = after(Isolated("429", retry_after_s=asked), former, policy)
    assert again is not None
    wait_s = (again.not_before - NOW).total_seconds()
    assert wait_s >= min(asked or 0.0, policy.retry_after_cap_s) - 1e-3
    assert policy.waits_s[former] * 0.749 <= wait_s <= max(policy.waits_s[former] * 1.251, policy.retry_after_cap_s)


def test_a_long_failure_is_kept_short() -> None:
    again = after(Isolated("x" * 10_000))
    assert again is not None
    assert len(again.failure) == 500
