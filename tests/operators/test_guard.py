"""Guards: what one root job may set off, and what a person can do about it."""

import gc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main
from prometheus_client import REGISTRY
from pydantic import ValidationError

from connectors.cancellations import Cancellations
from connectors.kafka.port import Topics
from connectors.kafka.record import OutgoingRecord
from connectors.tracing.off import NoTracing
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.envelope import Envelope, job_of
from operators.guard import EARLY_S, GuardPolicy, Root, _Bucket, guard, is_plain
from operators.produce import produce
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter
from schemas.event import JobEvent
from schemas.requests import RequestSubmitted, Tool
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.usage import TokensUsed
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
POLICY = GuardPolicy(
    max_depth=3, max_age_s=100, max_jobs=4, max_tokens=1000, max_repeats=2, max_prompt_chars=50, review_s=60.0
)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def child(number: int, **fields: Any) -> RequestSubmitted:
    least = {
        "job_id": f"c{number}",
        "parent_job_id": "root",
        "root_job_id": "root",
        "depth": 1,
        "prompt": f"Why {number}?",
    }
    return RequestSubmitted.model_validate(least | fields)


def root_after(*requests: RequestSubmitted) -> Root:
    root = Root(0.0, 0.0)
    for request in requests:
        assert root.exceeded(request, POLICY, 0.0) is None
        root.add(request, 0.0)
    return root


def test_each_limit_stops_the_first_request_beyond_it_and_none_before() -> None:
    root = root_after(*(child(n) for n in range(4)))
    assert root.exceeded(child(4), POLICY, 0.0) == ("jobs", 5, 4)
    assert root.exceeded(child(0, depth=2), POLICY, 0.0) is None
    assert root.exceeded(child(0, depth=3), POLICY, 0.0) == ("depth", 4, 3)
    assert root.exceeded(child(0, prompt="x" * 51), POLICY, 0.0) == ("prompt_size", 51, 50)
    assert root.exceeded(child(0), POLICY, 101.0) == ("age", 101, 100)
    root.tokens = 1000
    assert root.exceeded(child(0), POLICY, 0.0) is None
    root.tokens = 1001
    assert root.exceeded(child(0), POLICY, 0.0) == ("tokens", 1001, 1000)


def test_the_same_words_again_under_one_root_are_a_repeat_and_a_replay_of_the_same_job_is_none() -> None:
    root = root_after(child(0, prompt="Why?"), child(1, prompt="Why?"), child(1, prompt="Why?"))
    assert root.exceeded(child(2, prompt="Why?"), POLICY, 0.0) == ("repeats", 3, 2)
    assert root.exceeded(child(2, prompt="Why not?"), POLICY, 0.0) is None


def test_ancestors_are_told_from_the_root_down_even_if_ids_run_in_a_circle() -> None:
    root = root_after(child(1), child(2, parent_job_id="c1", depth=2))
    asked = child(3, parent_job_id="c2", depth=2)
    assert [(each.job_id, each.depth) for each in root.ancestors(asked)] == [("root", 0), ("c1", 1), ("c2", 2)]
    circular = root_after(child(1, parent_job_id="c2"), child(2, parent_job_id="c1"))
    assert {each.job_id for each in circular.ancestors(child(3, parent_job_id="c1"))} == {"root", "c1", "c2"}


def test_a_request_alone_leaves_no_trace_and_one_with_tools_or_a_parent_does() -> None:
    assert is_plain(RequestSubmitted(job_id="j", prompt="Why?"), POLICY)
    assert not is_plain(RequestSubmitted(job_id="j", prompt="Why?", tools=(Tool(name="search"),)), POLICY)
    assert not is_plain(RequestSubmitted(job_id="j", prompt="x" * 51), POLICY)
    assert not is_plain(child(1), POLICY)


class Hand:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


class Judge:
    """One bucket of roots: events in, and what it says, in the order in which a test wants them read."""

    def __init__(self, policy: GuardPolicy = POLICY) -> None:
        self.clock = Hand()
        self._policy = policy
        self.cancellations = Cancellations()
        self.restart(None)

    def restart(self, snapshot: Any) -> None:
        self.bucket = _Bucket("guard", self._policy, self.clock, self.cancellations, NoTracing(), snapshot)

    def read(self, *events: JobEvent, offset: int = 0) -> list[object]:
        envelopes = [Envelope(job_of(each), each, record(each, offset=offset), T0) for each in events]
        return [item for _, item in self.bucket.on_batch([(each.job.job_id, each) for each in envelopes])[0]]

    def review(self, event: JobEvent, offset: int = 0) -> ReviewRequested:
        (review,) = reviews_in(self.read(event, offset=offset))
        return review


def reviews_in(said: list[object]) -> list[ReviewRequested]:
    records = [each for each in said if isinstance(each, OutgoingRecord) and each.topic == "reviews.requested"]
    return [ReviewRequested.model_validate_json(each.value) for each in records]


def decided(review: ReviewRequested, decision: str = "approve", **fields: Any) -> ReviewDecided:
    least = {name: getattr(review, name) for name in ("job_id", "tenant", "review_id", "root_job_id")}
    return ReviewDecided.model_validate(least | {"decision": decision} | fields)


def gone_on(said: list[object]) -> list[str]:
    return [each.body.job_id for each in said if isinstance(each, Envelope)]


def test_a_decision_that_is_read_before_its_request_holds_as_after_a_crash_and_a_restart_between_them() -> None:
    judge = Judge()
    review = judge.review(child(1, depth=7))
    judge.restart(None)
    assert judge.read(decided(review), decided(review, "reject")) == []
    judge.restart(judge.bucket.snapshot())
    assert gone_on(judge.read(child(1, depth=7))) == ["c1"]
    judge.restart(None)
    judge.read(decided(review, "reject", note="no"))
    letters = [each for each in judge.read(child(1, depth=7)) if isinstance(each, DeadLetter)]
    assert [each.message for each in letters] == ["rejected: no"]


def test_early_decisions_are_forgotten_after_a_while_and_leave_nothing() -> None:
    judge = Judge()
    review = judge.review(child(1, depth=7))
    judge.restart(None)
    judge.read(decided(review), decided(review, job_id="another"))
    due = judge.bucket.notify_at()
    assert due is not None
    assert due - T0 <= timedelta(seconds=EARLY_S + 1)
    judge.clock.move(seconds=EARLY_S)
    assert judge.bucket.on_notify() == ([], True)
    assert judge.bucket.notify_at() is None


def test_a_former_snapshot_without_early_decisions_is_read() -> None:
    judge = Judge()
    review = judge.review(child(1, depth=7))
    _, *former, _ = judge.bucket.snapshot()
    judge.restart((1, *former))
    assert gone_on(judge.read(decided(review))) == ["c1"]


def test_an_approved_job_goes_on_however_long_the_decision_took() -> None:
    judge = Judge()
    judge.read(child(1))
    judge.clock.move(seconds=101)
    review = judge.review(child(2))
    judge.clock.move(seconds=30)
    assert review.limit == "age"
    assert gone_on(judge.read(decided(review))) == ["c2"]


def test_each_of_several_approved_siblings_goes_on_and_the_next_one_is_stopped() -> None:
    judge = Judge()
    judge.read(*(child(n) for n in range(4)))
    reviews = [judge.review(child(n)) for n in (4, 5, 6)]
    assert [gone_on(judge.read(decided(review))) for review in reviews] == [["c4"], ["c5"], ["c6"]]
    assert judge.review(child(7)).value == 8


def test_what_two_limits_stop_is_asked_for_twice_and_never_again_for_the_first() -> None:
    judge = Judge()
    judge.read(child(1), TokensUsed(job_id="c1", root_job_id="root", admission_id="a", model="m", prompt_tokens=1001))
    judge.clock.move(seconds=101)
    first = judge.review(child(2))
    (second,) = reviews_in(judge.read(decided(first)))
    judge.read(TokensUsed(job_id="c1", root_job_id="root", admission_id="b", model="m", prompt_tokens=1))
    assert (first.limit, second.limit) == ("tokens", "age")
    assert gone_on(judge.read(decided(second))) == ["c2"]


def test_the_usage_of_requests_alone_leaves_no_state_and_makes_no_room_for_a_chain() -> None:
    judge = Judge(GuardPolicy(max_jobs=1))
    alone = [TokensUsed(job_id=f"p{n}", root_job_id=f"p{n}", admission_id=f"p{n}", prompt_tokens=1) for n in range(300)]
    judge.read(*alone)
    assert judge.bucket.snapshot()[1] == []
    judge.read(child(1))
    judge.read(*alone)
    assert judge.review(child(2)).limit == "jobs"


def test_usage_under_a_root_counts_also_if_it_is_read_before_the_requests() -> None:
    judge = Judge()
    judge.read(TokensUsed(job_id="c1", root_job_id="root", admission_id="a", model="m", prompt_tokens=1001))
    assert judge.review(child(1)).limit == "tokens"


def test_a_root_is_remembered_while_something_of_it_waits_and_forgotten_afterwards() -> None:
    judge = Judge(GuardPolicy(max_jobs=1, remember_s=100.0))
    judge.read(child(1))
    review = judge.review(child(2))
    judge.clock.move(seconds=101)
    other = {"parent_job_id": "other", "root_job_id": "other"}
    judge.read(child(3, **other))
    assert judge.review(child(4)).value == 2
    judge.read(*(child(n, parent_job_id=f"r{n}", root_job_id=f"r{n}") for n in range(5, 300)))
    assert judge.review(child(300)).value == 2
    for held in judge.bucket.snapshot()[2]:
        judge.read(decided(review, "reject", review_id=held[0], job_id=held[1]))
    judge.clock.move(seconds=101)
    judge.read(child(3, **other))
    assert [root_id for root_id, *_ in judge.bucket.snapshot()[1]] == ["other"]


def test_no_more_than_max_waiting_jobs_of_a_tenant_wait_and_the_next_ends_with_the_reason() -> None:
    judge = Judge(GuardPolicy(max_depth=3, max_waiting=2))
    first, _ = (judge.review(child(n, depth=7)) for n in (1, 2))
    (letter,) = (each for each in judge.read(child(3, depth=7)) if isinstance(each, DeadLetter))
    assert "inference 8" in letter.message
    assert "2 jobs of its tenant wait for a review already: decide those" in letter.message
    assert judge.review(child(4, depth=7, tenant="another")).job_id == "c4"
    judge.read(decided(first, "reject"))
    assert judge.review(child(3, depth=7)).job_id == "c3"


def test_a_rejected_job_that_is_sent_again_is_another_review_and_a_replay_of_a_message_is_the_same() -> None:
    judge = Judge()
    first = judge.review(child(1, depth=7), offset=5)
    judge.read(decided(first, "reject"))
    again = judge.review(child(1, depth=7), offset=9)
    judge.restart(None)
    assert judge.review(child(1, depth=7), offset=9).review_id == again.review_id != first.review_id


def test_a_chain_that_names_parents_only_cannot_have_a_new_root_at_each_step() -> None:
    first = {"job_id": "c1", "parent_job_id": "root", "prompt": "Why?"}
    assert RequestSubmitted.model_validate(first | {"depth": 1}).root == "root"
    for depth in (0, 2, 3):
        with pytest.raises(ValidationError, match="parent_job_id without root_job_id"):
            RequestSubmitted.model_validate(first | {"depth": depth})


class Clock:
    """Moves on with each look."""

    def __init__(self, step_s: float = 0.0) -> None:
        self._now = T0
        self._step = timedelta(seconds=step_s)

    def __call__(self) -> datetime:
        self._now += self._step
        return self._now


def run(runtime_on: MakeRuntime, *events: object, clock: Callable[[], datetime] = Clock()) -> MemoryTopics:  # noqa: B008
    topics = MemoryTopics([record(event, offset=n) for n, event in enumerate(events)])  # type: ignore[arg-type]
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    asked = consume("asked", flow, RequestSubmitted, runtime)
    used = consume("used", flow, TokensUsed, runtime)
    decided = consume("decided", flow, ReviewDecided, runtime)
    guarded = guard("guard", asked.oks, used.oks, decided.oks, POLICY, runtime, clock)
    produce("passed", guarded.oks, RequestSubmitted, runtime)
    dead_letter("dlq", asked.errs, used.errs, decided.errs, guarded.errs, runtime=runtime)
    run_main(flow)
    return topics


def passed(topics: MemoryTopics) -> list[object]:
    return [each["job_id"] for each in topics.on("requests.submitted")]


def test_what_is_stopped_waits_with_its_reason_and_its_chain_and_a_duplicate_of_it_asks_nobody_again(
    runtime_on: MakeRuntime,
) -> None:
    deep = child(1, depth=7)
    topics = run(runtime_on, deep, deep, child(2))
    assert passed(topics) == ["c2"]
    (review,) = topics.on("reviews.requested")
    stopped = ReviewRequested.model_validate(review)
    assert (stopped.limit, stopped.value, stopped.allowed, stopped.depth) == ("depth", 8, 3, 7)
    assert stopped.origin == "requests.submitted/0/0"
    assert stopped.expires_at == T0 + timedelta(seconds=60)
    assert {status.state for status in topics.statuses()} == {"awaiting_review"}
    assert all(status.needs_review for status in topics.statuses())


def test_tokens_used_anywhere_under_a_root_count_once_each() -> None:
    judge = Judge()
    spent = [
        TokensUsed(job_id="root", root_job_id="root", admission_id=name, model="m", prompt_tokens=600)
        for name in ("a", "b", "b")
    ]
    judge.read(child(1), *spent)
    assert judge.review(child(2)).value == 1200


def test_a_review_that_nobody_decides_ends_its_job(runtime_on: MakeRuntime) -> None:
    topics = run(runtime_on, child(1, depth=7), *(child(n) for n in range(2, 4)), clock=Clock(step_s=61.0))
    (letter,) = (each for each in topics.dead_letters() if each.job_id == "c1")
    assert "nobody has decided" in letter.message
    assert letter.retryable


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_a_decision_for_a_job_that_does_not_wait_changes_nothing(runtime_on: MakeRuntime, decision: str) -> None:
    fields = {"job_id": "c1", "review_id": "unknown", "root_job_id": "root", "decision": decision}
    topics = run(runtime_on, ReviewDecided.model_validate(fields), child(1))
    assert passed(topics) == ["c1"]
    assert topics.dead_letters() == []


def reviews_open() -> float:
    gc.collect()  # buckets of other tests
    return REGISTRY.get_sample_value("headrace_reviews_open") or 0.0


def test_open_reviews_are_counted_across_a_restart_until_they_are_decided_or_the_flow_ends() -> None:
    before = reviews_open()
    judge = Judge()
    first, _ = judge.review(child(1, depth=7)), judge.review(child(2, depth=7))
    assert reviews_open() - before == 2
    judge.restart(judge.bucket.snapshot())
    assert reviews_open() - before == 2
    judge.read(decided(first))
    assert reviews_open() - before == 1
    judge.clock.move(seconds=61)
    judge.bucket.on_notify()
    assert reviews_open() == before
    judge.review(child(3, depth=9))
    judge.restart(None)
    assert reviews_open() == before


def test_a_review_is_time_that_its_job_was_held() -> None:
    def held(series: str) -> float:
        labels = {"step": "guard", "state": "held"}
        return REGISTRY.get_sample_value(f"headrace_state_seconds_{series}", labels) or 0.0

    judge = Judge()
    review = judge.review(child(1, depth=7))
    count, total = held("count"), held("sum")
    judge.clock.move(seconds=40)
    judge.read(decided(review))
    assert (held("count") - count, held("sum") - total) == (1, 40)
