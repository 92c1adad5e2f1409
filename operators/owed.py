"""Ends of jobs to callbacks that are owed.

Guarantee: each end of a job that has a callback URL makes one callback; a replay of the same end makes one of the same
id, a later end, after a redrive, one of another. State: none. Dead letters: none are known.
"""

from collections.abc import Mapping
from typing import TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from operators.envelope import Envelope
from operators.outcome import Outcome, attempt, not_the_end
from schemas.callbacks import CallbackDeferred, Ending
from schemas.event import derive_id
from schemas.jobs import JobState, StatusChanged
from schemas.results import ResultCompleted
from schemas.topics import EVENT_MAX_BYTES

E = TypeVar("E", ResultCompleted, StatusChanged)

CALLBACK = b'"callback_url"'
"""In the JSON of every end that has a URL; few others hold these bytes."""

TOLD_MAX_BYTES = EVENT_MAX_BYTES - 64 * 1024  # so that there is room for what befalls it
ENDINGS: Mapping[JobState, Ending] = {
    JobState.DEAD_LETTERED: "job.dead_lettered",
    JobState.CANCELLED: "job.cancelled",
}
"""What a status tells; a completed job is told by its result."""


def owed_for_result(result: ResultCompleted) -> CallbackDeferred:
    """What is told of an answer: all of it, but for one that is too large to be an event once more."""
    ended = result.completed_at.isoformat()
    callback = CallbackDeferred(
        job_id=result.job_id,
        tenant=result.tenant,
        callback_id=derive_id("callback", result.tenant, result.job_id, "job.completed", ended),
        url=result.callback_url or "",
        ending="job.completed",
        data=result.model_dump(mode="json", exclude_none=True, exclude={"callback_url"}),
        ended_at=result.completed_at,
        attempts=0,
        not_before=result.completed_at,
        failure="",
    )
    if len(callback.encode()) <= TOLD_MAX_BYTES:
        return callback
    left_out = "the result is too large for a callback: read it where jobs are shown, or on results.completed"
    data = {"job_id": result.job_id, "tenant": result.tenant, "kind": result.kind, "left_out": left_out}
    return callback.model_copy(update={"data": data})


def owed_for_status(status: StatusChanged) -> CallbackDeferred:
    """What is told of a job that ended without an answer."""
    ending = ENDINGS[status.state]
    end_id = status.end_id or status.event_id
    return CallbackDeferred(
        job_id=status.job_id,
        tenant=status.tenant,
        callback_id=derive_id("callback", status.tenant, status.job_id, ending, end_id),
        url=status.callback_url or "",
        ending=ending,
        data={
            "job_id": status.job_id,
            "state": status.state.value,
            "step": status.step,
            "detail": status.detail,
            "retryable": status.retryable,
        },
        ended_at=status.occurred_at,
        attempts=0,
        not_before=status.occurred_at,
        failure="",
    )


def _dated(envelope: Envelope[E]) -> Envelope[E]:
    """An end that does not say when it was: when it was produced, not when it is read, so that a replay is the same."""
    when = "completed_at" if isinstance(envelope.body, ResultCompleted) else "occurred_at"
    if when in envelope.body.model_fields_set:
        return envelope
    return envelope.carrying(envelope.body.model_copy(update={when: envelope.record.timestamp}))


def _told_by_result(envelope: Envelope[ResultCompleted]) -> bool:
    return envelope.body.callback_url is not None


def _told_by_status(envelope: Envelope[StatusChanged]) -> bool:
    return envelope.body.callback_url is not None and envelope.body.state in ENDINGS


@operator
def owed(
    step_id: str,
    completed: KeyedStream[Envelope[ResultCompleted]],
    ended: KeyedStream[Envelope[StatusChanged]],
) -> Outcome[CallbackDeferred]:
    """The callbacks of jobs that have ended, with a result or without."""
    told_results = op.map_value("result_dated", op.filter_value("has_url", completed, _told_by_result), _dated)
    told_statuses = op.map_value("status_dated", op.filter_value("ends", ended, _told_by_status), _dated)
    results = attempt("result", told_results, owed_for_result)
    statuses = attempt("status", told_statuses, owed_for_status)
    failed = op.merge("failed", results.errs, statuses.errs)
    return Outcome(op.merge("owed", results.oks, statuses.oks), op.map_value("unended", failed, not_the_end))
