"""Dead letters to their topics: the way out of a flow for what did not work.

Guarantee: every dead letter is delivered to `<topic>.dlq` before the flow's next snapshot, or the flow stops; its job's
status becomes dead_lettered, and what was reserved for it is freed, but for what refused answers cost. State: none.
"""

from collections.abc import Iterable

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.kafka.record import OutgoingRecord
from operators.outcome import flow_step
from operators.produce import outgoing
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter
from schemas.jobs import JobState, StatusChanged
from schemas.topics import dead_letter_topic
from schemas.usage import nothing_used


def _records(letter: DeadLetter, step: str) -> Iterable[OutgoingRecord]:
    if (
        letter.admission_id is not None
    ):  # what its tenant's budget has reserved for it is not used, but for refused answers
        used = nothing_used(letter.job_id, letter.tenant, None, letter.admission_id)
        if letter.usage is not None:
            used = used.model_copy(update={"model": letter.model} | letter.usage.model_dump())
        yield outgoing(used, step=step)
    yield outgoing(letter, step=step, topic=dead_letter_topic(letter.topic))
    if not letter.ends_job:
        return
    yield outgoing(
        StatusChanged(
            job_id=letter.job_id,
            tenant=letter.tenant,
            document_id=letter.document_id,
            state=JobState.DEAD_LETTERED,
            step=letter.step,
            attempt=letter.attempts,
            detail=letter.message,
            retryable=letter.retryable,
        ),
        step=step,
    )


@operator
def dead_letter(step_id: str, *ups: KeyedStream[DeadLetter], runtime: Runtime) -> None:
    """Write the dead letters of all steps of a flow."""
    step = flow_step(step_id)
    records = op.flat_map_value("records", op.merge("all", *ups), lambda letter: _records(letter, step))
    op.output("write", records, runtime.topics.sink())
