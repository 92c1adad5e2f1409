"""Reviews over HTTP: a person's decision becomes an event, once, and only for what they may see."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from connectors.kafka.client import record_of
from schemas.cancellations import CancelRequested
from schemas.event import utc_now
from schemas.requests import RequestSubmitted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.trace import root_of
from tests.gateway.operated import ACME, ALL, UMBRA, Gateway, gateway_on
from tests.kafka.client import read, values


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_on(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def stopped(gateway: Gateway, tenant: str = "acme", **fields: Any) -> ReviewRequested:
    """A job that the guard has stopped, as lists show it."""
    review = ReviewRequested(
        **{
            "job_id": f"job-{uuid4()}",
            "tenant": tenant,
            "review_id": f"review-{uuid4()}",
            "root_job_id": "root",
            "limit": "depth",
            "value": 9,
            "allowed": 8,
            "reason": "depth 9; 8 are allowed",
            "depth": 9,
            "prompt_chars": 20,
            "origin": "requests.submitted/0/0",
        }
        | fields
    )
    gateway.publish(review)
    gateway.eventually("the review to be known", lambda: gateway.ask("GET", f"/reviews/{review.review_id}")[0] == 200)
    return review


def decisions(gateway: Gateway, review: ReviewRequested) -> list[ReviewDecided]:
    """What flows read about it."""
    found = map(ReviewDecided.model_validate_json, values(gateway.bootstrap, "reviews.decided"))
    return [each for each in found if each.review_id == review.review_id]


def test_an_approval_is_the_event_that_the_flow_waits_for(gateway: Gateway) -> None:
    review = stopped(gateway)

    status, body = gateway.ask("POST", f"/reviews/{review.review_id}/approve", ACME, {"allowed": 12, "note": "go on"})

    assert (status, body["standing"], body["decided"]["decision"]) == (202, "approved", "approve")
    (decided,) = decisions(gateway, review)
    assert (decided.job_id, decided.root_job_id, decided.tenant) == (review.job_id, "root", "acme")
    assert (decided.decision, decided.allowed, decided.note, decided.reviewer) == ("approve", 12, "go on", "acme")
    assert gateway.get(f"/reviews/{review.review_id}")["standing"] == "approved"


def test_an_approval_needs_no_body_and_whoever_sees_all_is_the_console(gateway: Gateway) -> None:
    review = stopped(gateway)

    status, _ = gateway.ask("POST", f"/reviews/{review.review_id}/approve", ALL)

    assert status == 202
    (decided,) = decisions(gateway, review)
    assert (decided.allowed, decided.note, decided.reviewer) == (None, None, "console")


def test_a_decision_goes_on_with_the_callers_trace_or_else_that_of_the_job(gateway: Gateway) -> None:
    trace = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    reviews = {trace: stopped(gateway), "no trace": stopped(gateway)}

    for traceparent, review in reviews.items():
        assert gateway.ask("POST", f"/reviews/{review.review_id}/approve", traceparent=traceparent)[0] == 202

    messages = map(record_of, read(gateway.bootstrap, "reviews.decided"))
    traces = {message.key: message.header("traceparent") for message in messages}
    assert [traces[review.key_bytes] for review in reviews.values()] == [
        trace,
        root_of(reviews["no trace"].job_id).traceparent,
    ]


def test_a_rejection_says_why(gateway: Gateway) -> None:
    review = stopped(gateway)
    path = f"/reviews/{review.review_id}/reject"

    assert [gateway.ask("POST", path, ACME, body)[0] for body in (None, {}, {"note": ""})] == [422] * 3
    status, body = gateway.ask("POST", path, ACME, {"note": "a loop"})

    assert (status, body["standing"]) == (202, "rejected")
    assert [(each.decision, each.note) for each in decisions(gateway, review)] == [("reject", "a loop")]


@pytest.mark.parametrize(
    "body", [{"allowed": 8}, {"allowed": "many"}, {"allowed": 10**13}, {"note": "x" * 2001}, {"unknown": 1}]
)
def test_a_decision_that_cannot_hold_is_refused_and_not_published(gateway: Gateway, body: object) -> None:
    review = stopped(gateway)

    status, problem = gateway.ask("POST", f"/reviews/{review.review_id}/approve", ACME, body)

    assert (status, problem["type"]) == (422, "/problems/invalid")
    assert decisions(gateway, review) == []


def test_the_first_of_two_decisions_counts(gateway: Gateway) -> None:
    review = stopped(gateway)
    assert gateway.ask("POST", f"/reviews/{review.review_id}/approve", ACME)[0] == 202

    status, problem = gateway.ask("POST", f"/reviews/{review.review_id}/reject", ACME, {"note": "no"})

    assert (status, problem["type"]) == (409, "/problems/review-over")
    assert [each.decision for each in decisions(gateway, review)] == ["approve"]


def test_of_decisions_at_one_moment_one_is_published(gateway: Gateway) -> None:
    review = stopped(gateway)
    path = f"/reviews/{review.review_id}/approve"

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: gateway.ask("POST", path)[0], range(8)))

    assert sorted(statuses) == [202] + [409] * 7
    assert len(decisions(gateway, review)) == 1


def test_an_expired_review_is_over(gateway: Gateway) -> None:
    review = stopped(gateway, expires_at=utc_now() - timedelta(seconds=1))
    status, problem = gateway.ask("POST", f"/reviews/{review.review_id}/approve")
    assert (status, problem["detail"]) == (409, "this review is expired already")


def test_the_review_of_a_cancelled_job_is_over(gateway: Gateway) -> None:
    review, other = stopped(gateway, "canceller"), stopped(gateway, "canceller")
    gateway.publish(CancelRequested(job_id=review.job_id, tenant="canceller"))
    gateway.publish(CancelRequested(job_id=other.job_id, tenant="acme"))  # means nothing

    def listed() -> list[str]:
        return [each["review_id"] for each in gateway.get("/reviews", tenant="canceller")["reviews"]]

    gateway.eventually("it to be over", lambda: listed() == [other.review_id])
    assert gateway.get(f"/reviews/{review.review_id}")["standing"] == "cancelled"
    status, problem = gateway.ask("POST", f"/reviews/{review.review_id}/approve")
    assert (status, problem["detail"]) == (409, "this review is cancelled already")


def test_another_tenants_review_does_not_exist(gateway: Gateway) -> None:
    review = stopped(gateway, "acme")
    path = f"/reviews/{review.review_id}"

    asked = [
        gateway.ask("GET", path, UMBRA),
        gateway.ask("POST", f"{path}/approve", UMBRA),
        gateway.ask("POST", f"{path}/reject", UMBRA, {"note": "no"}),
        gateway.ask("POST", "/reviews/no-such-review/approve", UMBRA),
    ]

    assert {(status, problem["type"]) for status, problem in asked} == {(404, "/problems/unknown-review")}
    assert decisions(gateway, review) == []
    assert review.review_id not in str(gateway.get("/reviews", UMBRA, state="all"))
    assert gateway.ask("GET", "/reviews", UMBRA, tenant="acme")[0] == 403


def test_a_list_holds_what_is_open_or_all_the_newest_first(gateway: Gateway) -> None:
    first = stopped(gateway, "lister", requested_at=utc_now() - timedelta(hours=2))
    second = stopped(gateway, "lister", requested_at=utc_now() - timedelta(hours=1))
    assert gateway.ask("POST", f"/reviews/{second.review_id}/approve")[0] == 202

    def listed(**query: Any) -> list[str]:
        return [each["review_id"] for each in gateway.get("/reviews", tenant="lister", **query)["reviews"]]

    assert listed() == [first.review_id]
    assert listed(state="all") == [second.review_id, first.review_id]
    assert listed(state="all", limit=1) == [second.review_id]


def test_the_conversation_is_shown_to_whoever_asks_for_it(gateway: Gateway) -> None:
    request = RequestSubmitted(job_id=f"job-{uuid4()}", tenant="acme", prompt="what is a headrace?")
    gateway.publish(request)
    (message,) = (each for each in read(gateway.bootstrap, "requests.submitted") if each.key() == request.key_bytes)
    origin = f"requests.submitted/{message.partition()}/{message.offset()}"
    review = stopped(gateway, job_id=request.job_id, origin=origin)

    assert "prompt" not in gateway.get(f"/reviews/{review.review_id}")
    assert gateway.get(f"/reviews/{review.review_id}", prompt=True)["prompt"] == "user: what is a headrace?"


def test_a_conversation_that_is_not_kept_is_null(gateway: Gateway) -> None:
    review = stopped(gateway, origin="requests.submitted/0/1000000")
    assert gateway.get(f"/reviews/{review.review_id}", prompt=True)["prompt"] is None
