"""What `headrace reviews` refuses before it asks a broker, and which decision it takes for made."""

from datetime import timedelta

import pytest
from click.testing import CliRunner

from cli.reviews import reviews
from connectors.kafka.reviews import reviews_of
from schemas.cancellations import CancelRequested
from schemas.event import utc_now
from schemas.reviews import ReviewDecided, ReviewRequested

ID = "cbfa0eb3-5dd9-583b-9205-8f7c0ab1bbd2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reject", "", "--note", "no"], "at least the first 6 characters"),
        (["approve", ID, "cbfa0"], "at least the first 6 characters"),
        (["show", ""], "at least the first 6 characters"),
        (["reject", ID, "--note", "n" * 2001], "'--note': 2001 characters; at most 2000"),
        (["approve", ID, "--note", "n" * 2001], "'--note': 2001 characters; at most 2000"),
        (["approve", ID, "--reviewer", "n" * 257], "'--reviewer': 257 characters; at most 256"),
        (["approve", ID, "--note", "n" * 2000, "--reviewer", "n" * 256], "HEADRACE_KAFKA_BOOTSTRAP is missing"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_KAFKA_BOOTSTRAP", raising=False)
    refused = CliRunner().invoke(reviews, arguments)
    assert refused.exit_code == 2
    assert says in refused.stderr


def test_a_decision_that_names_another_job_or_root_blocks_nothing_and_the_first_that_names_it_counts() -> None:
    stop = {"job_id": "j", "root_job_id": "root", "review_id": ID}
    requested = ReviewRequested.model_validate(
        stop
        | {"limit": "age", "value": 2, "allowed": 1, "reason": "old", "depth": 1, "prompt_chars": 1, "origin": "t/0/0"}
    )
    now = utc_now()

    def decided(seconds: int, decision: str, **fields: str) -> ReviewDecided:
        at = {"decided_at": now + timedelta(seconds=seconds), "decision": decision}
        return ReviewDecided.model_validate(stop | at | fields)

    strangers = [decided(1, "approve", job_id="another"), decided(2, "approve", root_job_id="another")]
    assert [each.standing(now) for each in reviews_of([requested], strangers)] == ["open"]
    made = [*strangers, decided(4, "approve"), decided(3, "reject")]
    assert [each.standing(now) for each in reviews_of([requested], made)] == ["rejected"]


def test_the_review_of_a_cancelled_job_is_over_if_its_own_tenant_has_cancelled_it() -> None:
    stop = {"job_id": "j", "tenant": "acme", "root_job_id": "root", "review_id": ID, "limit": "age", "value": 2}
    requested = ReviewRequested.model_validate(
        stop | {"allowed": 1, "reason": "old", "depth": 1, "prompt_chars": 1, "origin": "t/0/0"}
    )

    def standing(tenant: str) -> list[str]:
        cancels = [CancelRequested(job_id="j", tenant=tenant)]
        return [each.standing(utc_now()) for each in reviews_of([requested], [], cancels)]

    assert (standing("acme"), standing("rival")) == (["cancelled"], ["open"])
