"""Callbacks go when they are due and their receiver has room, and survive restarts meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from connectors.kafka.recovery import RecoveryDirectory
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.hold import LARGEST_BYTES, HoldPolicy, hold
from operators.places import Places, PlacesPolicy
from operators.produce import produce
from operators.runtime import Runtime
from schemas.callbacks import CallbackDeferred
from schemas.dead_letter import REDRIVE_HEADER
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def callback(
    name: str,
    *,
    due: datetime = NOW + HOUR,
    attempts: int = 1,
    tenant: str = "acme",
    text: str = "",
    host: str = "a.org",
) -> CallbackDeferred:
    return CallbackDeferred(
        job_id=f"job of {name}",
        tenant=tenant,
        callback_id=name,
        url=f"https://{host}/hook",
        ending="job.completed",
        data={"text": text},
        ended_at=NOW,
        attempts=attempts,
        not_before=due,
        failure="503",
    )


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RecoveryDirectory]:
    with RecoveryDirectory(tmp_path / "webhooks") as directory:
        yield directory


def run(
    runtime_on: MakeRuntime,
    *callbacks: CallbackDeferred | Record,
    directory: RecoveryDirectory | None = None,
    at: datetime = NOW,
    places: Places | None = None,
    policy: HoldPolicy | None = None,
) -> MemoryTopics:
    records = [each if isinstance(each, Record) else record(each, offset=n) for n, each in enumerate(callbacks)]
    topics = MemoryTopics(records)
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    deferred = consume("deferred", flow, CallbackDeferred, runtime)
    due = hold("hold", deferred.oks, places or Places(), policy or HoldPolicy(), lambda: at)
    produce("due", due.oks, CallbackDeferred, runtime)
    dead_letter("dlq", deferred.errs, due.errs, runtime=runtime)
    run_main(flow, recovery_config=None if directory is None else directory.config(), epoch_interval=timedelta(0))
    return topics


def released(topics: MemoryTopics) -> list[object]:
    return [each["callback_id"] for each in topics.on("callbacks.deferred")]


def test_what_is_not_due_is_held_across_a_restart_and_goes_when_it_is(
    runtime_on: MakeRuntime, directory: RecoveryDirectory
) -> None:
    given = [callback(f"c{n}", due=NOW - HOUR) for n in range(5)]
    assert released(run(runtime_on, *given, directory=directory, at=NOW - 2 * HOUR)) == []
    # A source that goes on for a while: a held callback goes by its own timer.
    given += [callback(f"later {n}", due=NOW + 50 * HOUR) for n in range(20)]
    topics = run(runtime_on, *given, directory=directory)
    assert sorted(map(str, released(topics))) == [f"c{n}" for n in range(5)]
    told = {str(each["callback_id"]): each for each in topics.on("callbacks.deferred")}
    assert told["c0"] == given[0].model_dump(mode="json")


def test_a_first_attempt_does_not_wait_for_another_machines_clock(runtime_on: MakeRuntime) -> None:
    assert released(run(runtime_on, callback("new", attempts=0, due=NOW + HOUR))) == ["new"]


def test_of_a_callback_that_was_written_twice_one_is_held(
    runtime_on: MakeRuntime, directory: RecoveryDirectory
) -> None:
    given = [callback("c", due=NOW - HOUR), callback("c", due=NOW - HOUR)]
    run(runtime_on, *given, directory=directory, at=NOW - 2 * HOUR)
    others = (callback(f"later {n}") for n in range(10))
    assert released(run(runtime_on, *given, *others, directory=directory)) == ["c"]


def test_a_redriven_callback_is_due_at_once(runtime_on: MakeRuntime) -> None:
    redriven = replace(record(callback("again")), headers=((REDRIVE_HEADER, b"1"),))
    assert released(run(runtime_on, redriven)) == ["again"]


def test_a_receiver_gets_no_more_at_once_than_it_has_places_and_others_do_not_wait(runtime_on: MakeRuntime) -> None:
    places = Places(PlacesPolicy(per_host=2))
    to_one = [callback(f"a{n}", attempts=0) for n in range(10)]
    topics = run(runtime_on, *to_one, callback("b", attempts=0, host="b.org"), places=places)
    assert released(topics) == ["a0", "a1", "b"]


def test_what_waits_for_a_place_goes_when_one_is_free(runtime_on: MakeRuntime, directory: RecoveryDirectory) -> None:
    given = [callback(f"c{n}", attempts=0) for n in range(2)]
    full = Places(PlacesPolicy(per_host=0))
    assert released(run(runtime_on, *given, directory=directory, places=full)) == []
    more = (callback(f"later {n}") for n in range(10))
    assert sorted(map(str, released(run(runtime_on, *given, *more, directory=directory)))) == ["c0", "c1"]


def test_what_is_too_much_of_one_tenant_is_a_dead_letter_that_says_so(runtime_on: MakeRuntime) -> None:
    """And it can be redriven. Each bucket takes one at least, however large."""
    policy = HoldPolicy(buckets=1, tenant_bytes=1000)
    mine = [callback(f"c{n}") for n in range(4)]
    topics = run(runtime_on, *mine, callback("other", tenant="other", text="x" * 5000), policy=policy)
    letters = topics.dead_letters()
    assert [letter.job_id for letter in letters] == ["job of c1", "job of c2", "job of c3"]
    assert all("tenant acme has 1,000 bytes of callbacks held back already" in letter.message for letter in letters)
    assert all(letter.retryable and not letter.ends_job for letter in letters)
    assert letters[0].message_value == mine[1].encode()
    assert topics.statuses() == []


def test_a_callback_that_could_not_be_written_again_is_refused(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, callback("large", text="x" * LARGEST_BYTES), callback("small", attempts=0))
    assert released(topics) == ["small"]
    (letter,) = topics.dead_letters()
    assert (letter.job_id, letter.ends_job) == ("job of large", False)
    assert topics.statuses() == []


def test_what_is_no_callback_ends_no_job(runtime_on: MakeRuntime) -> None:
    junk = record(b'{"job_id": "victim"}', topic="callbacks.deferred")
    topics = run(runtime_on, junk)
    (letter,) = topics.dead_letters()
    assert (letter.job_id, letter.ends_job) == ("victim", False)
    assert topics.statuses() == []


def test_a_callback_of_the_far_future_or_with_a_strange_url_harms_nobody(runtime_on: MakeRuntime) -> None:
    strange = callback("strange", attempts=0).model_copy(update={"url": "http://[::1"})
    far = callback("far").model_dump(mode="json") | {"not_before": "9999-12-31T23:59:59-14:00"}
    assert released(run(runtime_on, CallbackDeferred.model_validate(far), strange)) == ["strange"]
