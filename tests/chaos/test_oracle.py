"""The oracle sees each kind of broken promise, and none where all is well."""

from dataclasses import replace

import pytest

from connectors.ledger.port import JobRecord
from tests.chaos.oracle import Call, Evidence, Kill, Outcomes, judge


def call(number: int, began_at: float, ended_at: float | None, fault: str | None = None) -> Call:
    return Call("j", number, fault or "answered", fault, (10, number), began_at, ended_at)


def record(*, ambiguities: int = 0, completion_tokens: int = 1) -> JobRecord:
    return JobRecord(
        "j", "t", "done", 0, 0, ambiguities, published=True, prompt_tokens=10, completion_tokens=completion_tokens
    )


def result(number: int = 1) -> bytes:
    return b'{"text": "j call %d"}' % number


GOOD = Evidence(
    requests=frozenset({"j"}),
    uploads=frozenset({"u"}),
    malformed=1,
    outcomes=Outcomes({"j": frozenset({result()})}, frozenset({"u"}), frozenset(), 1),
    calls={"j": [call(1, 100.0, 101.0)]},
    kills=[Kill("random", 200.0, 200.1)],
    ledger={"j": record()},
    missing_points=0,
    extra_points=0,
    exit_code=0,
)
TWICE = {"j": [call(1, 100.0, 101.0), call(2, 300.0, 301.0)]}
SECOND = Outcomes({"j": frozenset({result(2)})}, frozenset({"u"}), frozenset(), 1)


def test_where_all_is_well_nothing_is_reported() -> None:
    assert judge(GOOD).violations == {}


def test_a_job_that_was_cancelled_has_ended() -> None:
    outcomes = replace(GOOD.outcomes, results={}, cancelled=frozenset({"j"}))
    ledger = {"j": replace(record(), state="given_up")}
    assert judge(replace(GOOD, outcomes=outcomes, ledger=ledger)).violations == {}


def test_a_retry_after_a_known_failure_is_no_second_bill() -> None:
    calls = {"j": [call(1, 100.0, 101.0, "503"), call(2, 300.0, 301.0)]}
    seen = replace(GOOD, calls=calls, outcomes=SECOND, ledger={"j": record(completion_tokens=2)})
    assert judge(seen).violations == {}


def test_a_call_that_a_kill_interrupted_may_be_repeated_if_it_is_called_ambiguous() -> None:
    ledger = {"j": record(ambiguities=1, completion_tokens=2)}
    seen = replace(GOOD, calls=TWICE, outcomes=SECOND, kills=[Kill("random", 100.5, 100.6)], ledger=ledger)
    verdict = judge(seen)
    assert (verdict.violations, verdict.duplicate_calls, verdict.ambiguous) == ({}, 1, 1)


@pytest.mark.parametrize(
    ("seen", "violation"),
    [
        (replace(GOOD, outcomes=replace(GOOD.outcomes, results={})), "lost"),
        (replace(GOOD, outcomes=replace(GOOD.outcomes, indexed=frozenset())), "lost"),
        (
            replace(GOOD, outcomes=replace(GOOD.outcomes, results={"j": frozenset({result(), result(2)})})),
            "duplicate_results",
        ),
        (replace(GOOD, outcomes=replace(GOOD.outcomes, buried=frozenset({"j"}))), "two_outcomes"),
        (replace(GOOD, outcomes=replace(GOOD.outcomes, cancelled=frozenset({"j"}))), "two_outcomes"),
        (replace(GOOD, calls=TWICE), "duplicate_calls_outside_window"),
        (replace(GOOD, calls=TWICE, kills=[Kill("random", 100.5, 100.6)]), "unrecorded"),
        (replace(GOOD, calls=TWICE, kills=[Kill("after-ledger", 101.1, 101.2, "j")]), "paid_after_commit"),
        (replace(GOOD, kills=[Kill("after-claim", 100.0, 100.1, "j")]), "unrecorded"),
        (replace(GOOD, ledger={"j": record(completion_tokens=99)}), "wrong_tokens"),
        (replace(GOOD, outcomes=replace(GOOD.outcomes, malformed=0)), "malformed_lost"),
        (replace(GOOD, missing_points=1), "missing_points"),
        (replace(GOOD, extra_points=1), "extra_points"),
        (replace(GOOD, exit_code=1), "unclean_end"),
    ],
)
def test_each_broken_promise_is_reported(seen: Evidence, violation: str) -> None:
    assert violation in judge(seen).violations
