"""What is said about a job, from events in any order."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cancellations import CancelRequested
from schemas.dead_letter import REDRIVE_HEADER, DeadLetter, Header
from schemas.explanation import (
    BuriedMessage,
    Evidence,
    Explanation,
    IndexedDocument,
    Standing,
    Submission,
    explain,
)
from schemas.jobs import JobState, StatusChanged
from schemas.results import ResultCompleted, Timings, TokenCount

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def t(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def status(seconds: float, state: JobState, step: str = "answer.infer", *, needs_review: bool = False) -> StatusChanged:
    return StatusChanged(job_id="j", state=state, step=step, occurred_at=t(seconds), needs_review=needs_review)


def letter(
    seconds: float,
    *,
    offset: int = 0,
    step: str = "answer.infer",
    retryable: bool = True,
    ends_job: bool = True,
    redrives: int = 0,
    topic: str = "requests.submitted",
) -> DeadLetter:
    return DeadLetter(
        job_id="j",
        topic=topic,
        partition=0,
        offset=offset,
        message_headers=(Header(name=REDRIVE_HEADER, value=str(redrives).encode()),) if redrives else (),
        step=step,
        error_class="retryable" if retryable else "poison",
        error_type="Retryable" if retryable else "Poison",
        message="the model answered 500" if retryable else "the file is encrypted",
        attempts=3,
        retryable=retryable,
        ends_job=ends_job,
        first_failed_at=t(seconds),
        failed_at=t(seconds),
    )


def buried(seconds: float, *, redriven_at: float | None = None, offset: int = 0, redrives: int = 0) -> BuriedMessage:
    its_letter = letter(seconds, offset=offset, redrives=redrives)
    return BuriedMessage(its_letter, None if redriven_at is None else t(redriven_at))


def result(seconds: float) -> ResultCompleted:
    return ResultCompleted(
        job_id="j",
        kind="answer",
        text="Forty.",
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=10, completion_tokens=2),
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=1),
        completed_at=t(seconds),
    )


def told(evidence: Evidence, *, now: float = 60) -> Explanation:
    return explain(evidence, now=t(now))


def test_a_submission_alone_is_accepted_and_not_taken_up() -> None:
    explanation = told(Evidence("j", submitted=Submission("requests.submitted", t(0))))
    assert explanation.standing is Standing.ACCEPTED
    assert explanation.where == "accepted on requests.submitted; not yet taken up"
    assert explanation.user_sees == "Your request has been received and waits to be processed."
    assert (explanation.retry, explanation.escalate) == ((), ())


def test_nothing_cannot_be_explained() -> None:
    with pytest.raises(ValueError, match="job j"):
        told(Evidence("j"))


def test_a_job_under_way_is_where_its_last_status_says() -> None:
    statuses = [status(2, JobState.RUNNING), status(1, JobState.RUNNING, "answer.retrieve")]
    explanation = told(Evidence("j", statuses))
    assert explanation.standing is Standing.RUNNING
    assert explanation.where == "running in answer.infer"
    assert explanation.succeeded == ("answer.retrieve is done",)


def test_a_completed_job_needs_nothing_whatever_came_late() -> None:
    statuses = [status(5, JobState.COMPLETED, "answer.results"), status(9, JobState.RETRYING)]
    explanation = told(Evidence("j", statuses, result=result(5)), now=1e6)
    assert explanation.standing is Standing.COMPLETED
    assert (explanation.retry, explanation.escalate) == ((), ())
    assert explanation.user_sees == "Your answer is ready."


def test_a_result_counts_though_its_status_was_compacted_away() -> None:
    assert told(Evidence("j", [status(1, JobState.RUNNING)], result=result(5))).standing is Standing.COMPLETED


def test_a_retryable_dead_letter_comes_with_the_command_that_redrives_it() -> None:
    statuses = [status(1, JobState.RUNNING), status(5.1, JobState.DEAD_LETTERED)]
    explanation = told(Evidence("j", statuses, [buried(5)]))
    assert explanation.standing is Standing.DEAD_LETTERED
    (retry,) = explanation.retry
    assert retry.command == f"headrace dlq redrive {letter(5).event_id}"
    assert explanation.escalate == ()
    assert "you need not send it again" in explanation.user_sees


def test_poison_is_escalated_and_its_reason_is_what_the_user_sees() -> None:
    explanation = told(Evidence("j", buried=[BuriedMessage(letter(5, retryable=False))]))
    assert explanation.retry == ()
    assert "is poison" in explanation.escalate[0]
    assert explanation.user_sees == "Your request could not be processed: the file is encrypted."


def test_the_redrive_limit_is_escalated_and_not_offered_again() -> None:
    explanation = told(Evidence("j", buried=[buried(5, redrives=3)]))
    assert explanation.retry == ()
    assert "failed after 3 redrives" in explanation.escalate[0]
    assert "500" not in explanation.user_sees


def test_a_redriven_job_waits_until_a_step_speaks_and_ends_anew() -> None:
    before = [status(1, JobState.RUNNING), status(5.1, JobState.DEAD_LETTERED)]
    redriven = [buried(5, redriven_at=20)]
    assert told(Evidence("j", before, redriven)).standing is Standing.REDRIVEN
    running = [*before, status(21, JobState.RUNNING)]
    assert told(Evidence("j", running, redriven)).standing is Standing.RUNNING
    again = [*running, status(25.1, JobState.DEAD_LETTERED)]
    explanation = told(Evidence("j", again, [*redriven, buried(25, offset=7, redrives=1)]))
    assert explanation.standing is Standing.DEAD_LETTERED
    assert [retry.dead_letter_id for retry in explanation.retry] == [letter(25, offset=7).event_id]
    done = [*running, status(25, JobState.COMPLETED)]
    assert told(Evidence("j", done, redriven)).standing is Standing.COMPLETED


@pytest.mark.parametrize("skew_s", [-3600, 3600])
def test_the_clock_of_whoever_redrives_does_not_matter(skew_s: float) -> None:
    statuses = [status(5.1, JobState.DEAD_LETTERED), status(21, JobState.RUNNING), status(22, JobState.COMPLETED)]
    explanation = told(Evidence("j", statuses, [buried(5, redriven_at=20 + skew_s)]))
    assert explanation.standing is Standing.COMPLETED


def test_silence_is_escalated_until_the_job_has_ended() -> None:
    running = Evidence("j", [status(0, JobState.RUNNING)])
    assert told(running, now=14 * 60).escalate == ()
    assert "nothing has been heard of it for 16 minutes" in told(running, now=16 * 60).escalate[0]


def test_a_review_is_escalated() -> None:
    explanation = told(Evidence("j", [status(1, JobState.RUNNING, needs_review=True)]))
    assert "wants a person to decide" in explanation.escalate[0]


def test_a_job_that_waits_for_budget_or_for_a_person_is_not_stuck_however_long_it_takes() -> None:
    held = StatusChanged(
        job_id="j",
        state=JobState.DEFERRED,
        step="answer.budget",
        detail="held back",
        occurred_at=t(0),
        resume_at=t(3600),
    )
    waiting = told(Evidence("j", statuses=[held]), now=3000)
    assert waiting.standing is Standing.DEFERRED
    assert waiting.escalate == ()
    assert "2026-01-31 13:00 UTC" in waiting.user_sees
    stopped = status(1, JobState.AWAITING_REVIEW, "answer.guard", needs_review=True)
    told_of = told(Evidence("j", statuses=[held, stopped]), now=3000)
    assert told_of.standing is Standing.AWAITING_REVIEW
    (escalated,) = told_of.escalate
    assert "headrace reviews" in escalated
    approved = status(2, JobState.RUNNING, "answer.guard")
    assert told(Evidence("j", statuses=[held, stopped, approved]), now=60).escalate == ()


def test_an_older_version_of_a_document_is_not_offered_for_a_redrive() -> None:
    old = BuriedMessage(letter(5, topic="documents.uploaded", step="ingest.extract"))
    explanation = told(Evidence("j", buried=[old], replaced_by="k"))
    assert explanation.retry == ()
    assert "job k has since indexed the document" in explanation.escalate[0]


def test_a_refused_duplicate_leaves_its_job_as_it_is() -> None:
    refused = BuriedMessage(letter(5, retryable=False, ends_job=False))
    explanation = told(Evidence("j", [status(1, JobState.RUNNING)], [refused]))
    assert explanation.standing is Standing.RUNNING
    assert "another message under this job's id was refused" in explanation.escalate[0]


def test_a_callback_that_failed_leaves_its_job_completed_and_may_be_made_again() -> None:
    failed, gone = (
        BuriedMessage(
            letter(
                5, offset=offset, step="webhooks.deliver", topic="callbacks.deferred", ends_job=False, retryable=again
            )
        )
        for offset, again in ((1, True), (2, False))
    )
    explanation = told(Evidence("j", [status(1, JobState.COMPLETED)], [failed, gone], result(1)))
    assert explanation.standing is Standing.COMPLETED
    (retry,) = explanation.retry
    assert retry.dead_letter_id == failed.letter.event_id
    assert "was not told to its callback URL" in retry.why
    (reason,) = explanation.escalate
    assert gone.letter.event_id in reason
    assert "was not told to its callback URL" in reason
    made = BuriedMessage(failed.letter, t(7))
    assert told(Evidence("j", [status(1, JobState.COMPLETED)], [made], result(1))).retry == ()


def test_a_dead_end_whose_letter_has_expired_cannot_be_redriven() -> None:
    explanation = told(Evidence("j", [status(5, JobState.DEAD_LETTERED)]))
    assert explanation.standing is Standing.DEAD_LETTERED
    assert explanation.retry == ()
    assert "submit it anew" in explanation.escalate[0]


def test_a_document_that_was_removed_is_called_so() -> None:
    explanation = told(Evidence("j", indexed=IndexedDocument(t(5), 0, deleted=True)))
    assert (explanation.kind, explanation.user_sees) == ("document", "Your document has been removed.")


events = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from(JobState), st.sampled_from(["answer.retrieve", "answer.infer"])),
    max_size=8,
)
ends = st.lists(st.tuples(st.integers(0, 50), st.none() | st.integers(0, 50), st.integers(0, 4)), max_size=4)


def evidence_of(said: list[tuple[int, JobState, str]], died: list[tuple[int, int | None, int]]) -> Evidence:
    return Evidence(
        "j",
        [status(at, state, step) for at, state, step in said],
        [
            buried(at, redriven_at=redriven, offset=offset, redrives=redrives)
            for offset, (at, redriven, redrives) in enumerate(died)
        ],
        submitted=Submission("requests.submitted", t(0)),
    )


@given(events, ends, st.randoms(use_true_random=False))
def test_order_and_repeats_of_events_do_not_matter(
    said: list[tuple[int, JobState, str]], died: list[tuple[int, int | None, int]], shuffler: random.Random
) -> None:
    evidence = evidence_of(said, died)
    statuses, letters = [*evidence.statuses, *evidence.statuses], list(evidence.buried)
    shuffler.shuffle(statuses)
    shuffler.shuffle(letters)
    shuffled = Evidence("j", statuses, letters, submitted=evidence.submitted)
    assert told(shuffled) == told(evidence)


@given(events, ends)
def test_a_terminal_state_outranks_others_unless_it_was_redriven(
    said: list[tuple[int, JobState, str]], died: list[tuple[int, int | None, int]]
) -> None:
    evidence = evidence_of(said, died)
    explanation = told(evidence)
    completed = [each.occurred_at for each in evidence.statuses if each.state is JobState.COMPLETED]
    is_open = [each.letter.failed_at for each in evidence.buried if each.redriven_at is None]
    if completed or is_open:
        assert explanation.standing.ended
    if (
        completed
        and max(completed) > max([*is_open, t(-1)])
        and not any(each.state is JobState.DEAD_LETTERED for each in evidence.statuses)
    ):
        assert explanation.standing is Standing.COMPLETED
    offered = {retry.dead_letter_id for retry in explanation.retry}
    redriven = {each.letter.event_id for each in evidence.buried if each.redriven_at is not None}
    capped = {each.letter.event_id for each in evidence.buried if each.letter.redrives >= 3}
    assert not offered & (redriven | capped)
    assert explanation.user_sees.endswith(".")


CANCEL = CancelRequested(job_id="j", reason="not needed", requested_at=t(4))


def cancelled(seconds: float) -> StatusChanged:
    return status(seconds, JobState.CANCELLED).model_copy(update={"detail": "not needed"})


def test_a_cancelled_job_says_where_and_why_and_needs_nothing() -> None:
    statuses = [status(1, JobState.RUNNING, "answer.retrieve"), status(2, JobState.RUNNING), cancelled(5)]
    explanation = told(Evidence("j", statuses, cancel=CANCEL), now=1e6)
    assert explanation.standing is Standing.CANCELLED
    assert explanation.standing.ended
    assert explanation.where == "cancelled in answer.infer: not needed"
    assert explanation.user_sees == "Your request was cancelled."
    assert (explanation.retry, explanation.escalate) == ((), ())
    assert explanation.succeeded == ("answer.retrieve is done",)
    assert [(each.what, each.where, each.detail) for each in explanation.timeline[2:]] == [
        ("cancel requested", "cancellations.requested", "not needed"),
        ("cancelled", "answer.infer", "not needed"),
    ]


def test_a_job_that_is_to_be_cancelled_and_has_not_ended_says_so() -> None:
    explanation = told(Evidence("j", [status(1, JobState.DEFERRED, "answer.budget")], cancel=CANCEL))
    assert explanation.standing is Standing.DEFERRED
    assert explanation.where == "deferred in answer.budget; its cancellation was requested"
    assert explanation.user_sees == "Your request is being cancelled."


def test_a_cancel_by_another_tenant_is_no_part_of_the_story() -> None:
    foreign = CANCEL.model_copy(update={"tenant": "rival"})
    explanation = told(Evidence("j", [status(1, JobState.RUNNING)], cancel=foreign))
    assert explanation.where == "running in answer.infer"
    assert [each.what for each in explanation.timeline] == ["running"]
    assert not Evidence("j", cancel=CANCEL).known


def test_a_completed_job_stays_completed_though_a_repeat_of_it_was_cancelled() -> None:
    explanation = told(Evidence("j", [cancelled(9)], result=result(5), cancel=CANCEL))
    assert explanation.standing is Standing.COMPLETED
    assert explanation.user_sees == "Your answer is ready."


def test_a_job_that_was_cancelled_after_a_dead_letter_cannot_be_retried() -> None:
    explanation = told(Evidence("j", [cancelled(9)], [buried(5)]))
    assert explanation.standing is Standing.CANCELLED
    assert explanation.retry == ()


def test_statuses_that_come_after_a_cancellation_do_not_bring_the_job_back() -> None:
    assert told(Evidence("j", [cancelled(5), status(9, JobState.RUNNING)])).standing is Standing.CANCELLED
