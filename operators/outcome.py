"""What an operator that can fail returns, and the one place where a failure becomes a dead letter.

`attempt` runs quick, pure stages; `operators.offload` runs slow ones. No other code catches a stage's exceptions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

import bytewax.operators as op
import structlog
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.kafka.record import Record
from operators.envelope import Envelope, Job
from schemas.dead_letter import DeadLetter, Header, first_produced_at
from schemas.errors import Bill, Fatal, GaveUp, HeadraceError, Refused, Retryable
from schemas.event import utc_now
from schemas.results import TokenCount
from schemas.trace import trace_of

X = TypeVar("X")
Y = TypeVar("Y")

log = structlog.get_logger()


@dataclass(frozen=True)
class Outcome(Generic[Y]):
    """Two streams: what worked, and the dead letters of what did not. Both must end in a topic."""

    oks: KeyedStream[Envelope[Y]]
    errs: KeyedStream[DeadLetter]


def bury(
    job: Job,
    record: Record,
    error: Exception,
    *,
    step: str,
    attempts: int = 1,
    first_failed_at: datetime | None = None,
    received_at: datetime | None = None,
) -> DeadLetter:
    """The dead letter of a message whose work raised `error`.

    An exception that is not classed is a bug of ours or of a connector: poison for this message, and an ERROR in the
    log, without its message, which may hold document text.
    """
    if isinstance(error, HeadraceError):
        message = str(error)
    else:
        message = f"{step} failed on this message with an unexpected {type(error).__name__}; the flow's log says where"
        log.error(
            "unexpected exception",
            step=step,
            job_id=job.job_id,
            tenant=job.tenant,
            trace_id=trace_of(record.headers, job.job_id).trace_id,
            exc_type=type(error).__name__,
            where=_where(error),
        )
    now, bill = utc_now(), job.billed
    retryable = isinstance(error, Retryable | GaveUp)
    return DeadLetter(
        job_id=job.job_id,
        tenant=job.tenant,
        document_id=job.document_id,
        callback_url=job.callback_url,
        admission_id=job.admission_id,
        model=None if bill is None else bill.model,
        usage=None if bill is None else _tokens(bill),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        message_key=record.key,
        message_value=record.value,
        message_headers=tuple(Header(name=name, value=value) for name, value in record.headers),
        produced_at=first_produced_at(record.headers, record.timestamp),
        step=step,
        error_class="retryable" if retryable else "poison",
        error_type=type(error).__name__,
        message=message,
        attempts=attempts,
        retryable=retryable,
        ends_job=not isinstance(error, Refused),
        received_at=received_at,
        first_failed_at=first_failed_at or now,
        failed_at=now,
    )


def not_the_end(letter: DeadLetter) -> DeadLetter:
    """The same letter, whose job goes on, or has ended already."""
    return letter.model_copy(update={"ends_job": False})


def _tokens(bill: Bill) -> TokenCount:
    return TokenCount(
        prompt_tokens=bill.prompt_tokens, completion_tokens=bill.completion_tokens, estimated=bill.estimated
    )


def _where(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return "unknown" if frame is None else f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"


def flow_step(step_id: str) -> str:
    """The step as the flow file names it: `ingest.extract` of `ingest.extract.work.run`."""
    return ".".join(step_id.split(".")[:2])


def _is_envelope(keyed: tuple[str, object]) -> bool:
    return isinstance(keyed[1], Envelope)


def _dead_letter(item: object) -> DeadLetter | None:
    return item if isinstance(item, DeadLetter) else None


def split(ran: KeyedStream[Envelope[Y] | DeadLetter]) -> Outcome[Y]:
    """Part what worked from what did not."""
    return sort_out(cast("KeyedStream[object]", ran))[0]


def sort_out(ran: KeyedStream[object]) -> tuple[Outcome[Any], KeyedStream[object]]:
    """Part what worked from what did not; and everything that is no envelope, such as statuses, once more.

    By one predicate, since nearly all are envelopes, and each further look at every item costs a microsecond.
    """
    parted = op.branch("ok", ran, _is_envelope)
    oks = cast("KeyedStream[Envelope[Any]]", parted.trues)
    return Outcome(oks, op.filter_map_value("errs", parted.falses, _dead_letter)), parted.falses


@operator
def attempt(step_id: str, up: KeyedStream[Envelope[X]], stage: Callable[[X], Y]) -> Outcome[Y]:
    """Apply a quick, pure stage to each body; what raises becomes a dead letter. Fatal stops the flow.

    `stage` runs on the dataflow's own thread: milliseconds, no I/O. Anything slower belongs in `offload`.
    """
    step = flow_step(step_id)

    def run(envelope: Envelope[X]) -> Envelope[Y] | DeadLetter:
        try:
            return envelope.carrying(stage(envelope.body))
        except Fatal:
            raise
        except Exception as error:  # noqa: BLE001  # any exception would end the whole execution; this item alone failed
            return bury(envelope.job, envelope.record, error, step=step, received_at=envelope.received_at)

    return split(op.map_value("run", up, run))
