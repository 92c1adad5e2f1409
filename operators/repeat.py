"""What to do with a request that has come before: ask the ledger.

Guarantee: no repeat makes a call that its job has made already. A finished job's stored result is published again; a
job whose call is in flight goes on, and the repeat ends with a status. What the ledger does not know (a job that waits
for budget or for a person, one whose last call failed or that was given up, or another request under the same id) goes
the way of a fresh request, where the same id meets the same review and claim.

State: offload's pending repeats. Dead letters: a repeat whose deadline passed while the ledger was out of reach; one of
a job that ended after a tool's answer, which has a dead letter of its own.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.ledger.port import Ledger
from operators.envelope import Envelope
from operators.infer import call_id, hash_of, stored_answer
from operators.offload import Dropped, OffloadPolicy, Pending, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.dead_letter import DeadLetter
from schemas.errors import Refused
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted

X = TypeVar("X")

REPEAT = OffloadPolicy(capacity=256, backlog=256)


@dataclass(frozen=True)
class Repeated:
    """Results to publish again, and requests to treat as fresh. All must be consumed."""

    results: KeyedStream[Envelope[ResultCompleted]]
    unknown: KeyedStream[Envelope[RequestSubmitted]]
    errs: KeyedStream[DeadLetter]


async def known_result(request: RequestSubmitted, ledger: Ledger) -> ResultCompleted | JobState | None:
    """The job's result; that it is being worked on; or None: the ledger cannot tell, or it is another request."""
    entry_id, asks = call_id(request), hash_of(request)
    depth = request.depth
    first = True
    while True:
        known = await ledger.look(entry_id)
        if known is None:
            return None if first else JobState.AWAITING_TOOL
        if known.state == "given_up":
            return None if first else JobState.DEAD_LETTERED
        if known.state == "waiting" and first:  # maybe for nobody: its deadline may have ended it
            return None
        if first and (known.tenant, known.request_hash) != (request.tenant, asks):
            return None
        if known.state != "done" or known.result is None:
            return JobState.RUNNING
        answer = stored_answer(known.result)
        if isinstance(answer, ResultCompleted):
            return answer
        first, depth = False, depth + 1
        entry_id = f"{request.job_id}/{depth}"


@operator
def repeat(step_id: str, up: KeyedStream[Envelope[RequestSubmitted]], ledger: Ledger, runtime: Runtime) -> Repeated:
    """Answer repeats from the ledger, as far as it knows them."""

    async def work(envelope: Envelope[RequestSubmitted]) -> RequestSubmitted | ResultCompleted:
        return envelope.body

    async def look(
        pending: Pending[RequestSubmitted], call: Callable[[], Awaitable[RequestSubmitted | ResultCompleted]]
    ) -> RequestSubmitted | ResultCompleted | Dropped:
        request = pending.envelope.body
        match await known_result(request, ledger):
            case ResultCompleted() as result:
                return result
            case None:
                return request
            case JobState.DEAD_LETTERED:
                await call()  # raises Cancelled, if that was its end
                raise Refused(
                    f"a later turn of job {request.job_id!r} ended as a dead letter, after tools had been called: "
                    "redrive that one, or submit this request under another job_id"
                )
            case state:
                pending.tell(state, "a repeat of this request was dropped: the job is in this state already")
                return Dropped()

    looked: Outcome[RequestSubmitted | ResultCompleted] = offload(
        "work", up, work, body=RequestSubmitted, policy=REPEAT, runtime=runtime, around=look
    )
    results = op.filter_map_value("results", looked.oks, lambda envelope: _carrying(envelope, ResultCompleted))
    unknown = op.filter_map_value("unknown", looked.oks, lambda envelope: _carrying(envelope, RequestSubmitted))
    return Repeated(results, unknown, looked.errs)


def _carrying(envelope: Envelope[RequestSubmitted | ResultCompleted], body: type[X]) -> Envelope[X] | None:
    return envelope.carrying(envelope.body) if isinstance(envelope.body, body) else None
