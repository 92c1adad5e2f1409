"""What a process knows of cancelled jobs."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from connectors import cancellations
from connectors.cancellations import LOOK_S, Cancellations, Lookout
from connectors.kafka.record import Record
from schemas.cancellations import CancelRequested
from schemas.requests import RequestSubmitted
from tests.memory_topics import record

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def cancel(job_id: str, *, tenant: str = "acme", reason: str | None = "not needed") -> CancelRequested:
    return CancelRequested(job_id=job_id, tenant=tenant, reason=reason)


def test_a_cancellation_holds_for_its_own_tenants_job_alone_and_the_first_reason_stays() -> None:
    known = Cancellations(Hand())
    known.add(cancel("j"))
    known.add(cancel("j", reason="another"))
    assert known.of("acme", "j") == "not needed"
    assert (known.of("rival", "j"), known.of("acme", "k")) == (None, None)


def test_who_watches_a_job_is_told_once_whenever_it_is_cancelled() -> None:
    known, told = Cancellations(Hand()), list[str]()
    assert known.watch("acme", "j", told.append) is None
    known.add(cancel("j"))
    known.add(cancel("j"))
    assert told == ["not needed"]
    assert known.watch("acme", "j", told.append) == "not needed"
    assert told == ["not needed"]


def test_who_watches_no_more_is_not_told_and_others_are() -> None:
    known, told = Cancellations(Hand()), list[str]()
    other = list[str]()
    for watcher in (told.append, other.append):
        known.watch("acme", "j", watcher)
    known.unwatch("acme", "j", told.append)
    known.unwatch("acme", "j", told.append)
    known.add(cancel("j"))
    assert (told, other) == ([], ["not needed"])


def test_after_a_week_it_is_forgotten() -> None:
    clock = Hand()
    known = Cancellations(clock)
    known.add(cancel("old"), NOW - timedelta(days=8))
    known.add(cancel("j"), NOW - timedelta(days=6))
    assert (known.of("acme", "old"), known.of("acme", "j")) == (None, "not needed")
    clock.now += timedelta(days=2)
    known.add(cancel("k"))
    assert (known.of("acme", "j"), known.of("acme", "k")) == (None, "not needed")


def test_of_too_many_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "MOST", 3)
    known = Cancellations(Hand())
    for n in range(5):
        known.add(cancel(f"j{n}"))
    assert [n for n in range(5) if known.of("acme", f"j{n}") is not None] == [2, 3, 4]


def test_the_more_waits_in_a_process_the_more_seldom_it_looks() -> None:
    known = Cancellations()
    one, other = Lookout(known), Lookout(known)
    one.looked()
    now = time.time()

    def waiting(count: int) -> list[Record]:
        return [record(RequestSubmitted(job_id="j", prompt="x" * 100_000))] * count

    assert one.next_at(waiting(1)) - now < LOOK_S + 0.1
    assert 9.0 < one.next_at(waiting(100)) - now < 15.0  # 10 MB
    other.next_at(waiting(100))
    assert 18.0 < one.next_at(waiting(100)) - now < 30.0
    other.next_at([])
    assert one.next_at(waiting(1)) - now < LOOK_S + 0.1
