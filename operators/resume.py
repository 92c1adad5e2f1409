"""Tools' answers back to the jobs that wait for them.

Guarantee: a job goes on once for each call of a tool: with the tool's answer, or, if none was completed by the time
named in the call, with a note for the model that there was none. An answer to no call, a second one, and a late one are
counted and change nothing. Whether the call or its answer is read first does not matter, nor how long the flow was down
in between. A turn that is redriven goes on as it did before: its message carries what the tool had answered.

A job that is cancelled goes on without its tool's answer, and `infer` ends it.

State: hash buckets, each with its open calls, answers that came before their calls, and the ids of calls that are over.
Dead letters: a conversation that the answer makes too long; a redriven call that is over and carries no answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast
from zlib import crc32

import bytewax.operators as op
import structlog
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from prometheus_client import Counter
from pydantic import TypeAdapter, ValidationError

from connectors.cancellations import Cancellations, Lookout
from connectors.metric_labels import TOOLS
from connectors.tracing.port import Tracer
from operators.dedup import DedupPolicy, Generations, GenerationsSnapshot
from operators.digests import digest_of
from operators.envelope import Envelope, job_of
from operators.outcome import Outcome, bury, flow_step, sort_out
from operators.runtime import Runtime
from operators.traced import caused, record_said
from operators.write import write
from schemas.dead_letter import DeadLetter, redrives
from schemas.errors import Fatal, Poison, Refused
from schemas.event import at_unix, utc_now
from schemas.jobs import JobState, StatusChanged
from schemas.requests import ChatMessage, RequestSubmitted, ToolCall
from schemas.tools import ANSWER_HEADER, ToolCompleted, ToolRequested

log = structlog.get_logger()

IGNORED = Counter("headrace_tool_answers_ignored_total", "Tools' answers that no job waited for", ["tool"])

BUCKETS = 256
EARLY_S = 600.0  # how long an answer waits for its call, which is on another partition of the same flow's topics
EARLY = 100  # of them, per bucket
OVER = DedupPolicy(remember_s=7 * 24 * 3600.0, bucket_ids=4096)  # as long as tools.requested is kept
NO_ANSWER = "The tool did not answer in time."
NOTHING = "(nothing)"
SNAPSHOT_VERSION = 1


@dataclass(frozen=True)
class ResumePolicy:
    """How patient it is."""

    grace_s: float = 10.0  # from a call's reading or a restart: what the tool had answered by then is yet to be read


def resumed(asked: ToolRequested, content: str) -> RequestSubmitted:
    """The request that goes on: the conversation with the call and its answer. Raises Poison if it is too long."""
    call = ToolCall(call_id=asked.call_id, tool=asked.tool, arguments=asked.arguments)
    turns = (
        *asked.request.turns,
        ChatMessage(role="assistant", content=asked.said, tool_call=call),
        ChatMessage(role="tool", content=content or NOTHING, tool_call_id=asked.call_id),
    )
    fields = {name: getattr(asked.request, name) for name in RequestSubmitted.model_fields}
    try:
        return RequestSubmitted.model_validate(fields | {"prompt": None, "messages": turns})
    except ValidationError as error:
        raise Poison(f"the answer of tool {asked.tool} does not fit in: {error.errors()[0]['msg']}") from error


@dataclass
class _Open:
    """A call that waits for its answer."""

    key: str
    envelope: Envelope[ToolRequested]
    seen_at: float  # Unix seconds; by this process
    plain: object = None


_Snapshot = tuple[int, list[tuple[str, Any]], list[tuple[str, float, str]], GenerationsSnapshot]

_CODEC: TypeAdapter[Envelope[ToolRequested]] = TypeAdapter(Envelope[ToolRequested])


class _Bucket(StatefulBatchLogic[tuple[str, Envelope[Any]], tuple[str, object], _Snapshot]):
    """Some jobs' calls."""

    def __init__(
        self,
        name: str,
        policy: ResumePolicy,
        clock: Callable[[], datetime],
        cancellations: Cancellations,
        tracer: Tracer,
        resume: _Snapshot | None,
    ) -> None:
        self._name = name
        self._tracer = tracer
        self._cancellations = cancellations
        self._lookout = Lookout(cancellations)
        self._policy = policy
        self._clock = clock
        self._open: dict[str, _Open] = {}  # by call id
        self._early: dict[str, tuple[float, ToolCompleted]] = {}  # same: when it came
        self._over = Generations(OVER, self._now())
        if resume is None:
            return
        version, calls, early, over = resume
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"{name}: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        for key, plain in calls:
            try:
                envelope = _CODEC.validate_python(plain)
            except ValidationError as error:
                raise Fatal(f"{name}: a call of the snapshot does not fit this release; drain it first") from error
            self._open[envelope.body.call_id] = _Open(key, envelope, self._now(), plain)
        self._early = {  # they wait anew: the flow may have been down for longer than that
            call_id: (self._now(), ToolCompleted.model_validate_json(answer)) for call_id, _, answer in early
        }
        self._over = Generations.restored(OVER, over)

    def _now(self) -> float:
        return self._clock().timestamp()

    def on_batch(self, values: list[tuple[str, Envelope[Any]]]) -> tuple[list[tuple[str, object]], bool]:
        emitted: list[tuple[str, object]] = []
        for key, envelope in values:
            if isinstance(envelope.body, ToolRequested):
                emitted += self._ask(key, envelope)
            else:
                emitted += self._answer(_timed(envelope))
        return emitted, False

    def on_notify(self) -> tuple[list[tuple[str, object]], bool]:
        now = self._now()
        emitted: list[tuple[str, object]] = []
        self._lookout.looked()
        for call_id in [each for each, call in self._open.items() if self._due(call) <= now]:
            emitted += self._go_on(call_id, NO_ANSWER)
        for call_id in [each for each, (at, _) in self._early.items() if at + EARLY_S <= now]:
            self._ignore(self._early.pop(call_id)[1], "no job has asked for it")
        return emitted, False

    def _ask(self, key: str, envelope: Envelope[ToolRequested]) -> Iterator[tuple[str, object]]:
        asked = envelope.body
        again = redrives(envelope.record.headers)
        if not self._over.add(digest_of(f"{asked.call_id}/{again}"), self._now()):
            return  # the same call, repeated by a crash or by a duplicate of the job
        told = [value for name, value in envelope.record.headers if name == ANSWER_HEADER]
        if told:
            self._open.pop(asked.call_id, None)
            yield self._next(key, envelope, told[-1].decode("utf-8", errors="replace"))
            return
        if again and asked.call_id in self._open:
            return  # redriven for the tool's sake
        if again and digest_of(f"{asked.call_id}/0") in self._over:  # a guess would make it another conversation
            over = Refused(
                f"call {asked.call_id} is over, and this message does not say with what its job went on; if the job "
                "has no result, submit it again under another id"
            )
            yield key, self._buried(envelope, over)
            return
        self._open[asked.call_id] = _Open(key, envelope, self._now())
        status = StatusChanged(
            job_id=asked.job_id,
            tenant=asked.tenant,
            state=JobState.AWAITING_TOOL,
            step=self._name,
            attempt=again + 1,
            detail=f"waits for tool {asked.tool}, call {asked.call_id}",
            resume_at=asked.answer_until,
        )
        yield key, caused(status, envelope, step=self._name, tracer=self._tracer)
        early = self._early.pop(asked.call_id, None)
        if early is not None:
            yield from self._answer(early[1])

    def _answer(self, answer: ToolCompleted) -> Iterator[tuple[str, object]]:
        waiting = self._open.get(answer.call_id)
        if waiting is not None and waiting.envelope.job.job_id == answer.job_id:
            if answer.completed_at > waiting.envelope.body.answer_until:
                self._ignore(answer, "it was completed too late")
            else:
                yield from self._go_on(answer.call_id, answer.content)
        elif waiting is not None or digest_of(f"{answer.call_id}/0") in self._over:
            self._ignore(answer, "its call is over, or another job's")
        else:
            self._early[answer.call_id] = (self._now(), answer)
            if len(self._early) > EARLY:
                self._ignore(self._early.pop(next(iter(self._early)))[1], "too many come before their calls")

    def _ignore(self, answer: ToolCompleted, why: str) -> None:
        IGNORED.labels(TOOLS.label(answer.tool)).inc()
        log.warning(
            "tool's answer ignored",
            job_id=answer.job_id,
            tenant=answer.tenant,
            step=self._name,
            call_id=answer.call_id,
            why=why,
        )

    def _buried(self, envelope: Envelope[ToolRequested], error: Exception) -> DeadLetter:
        received_at = envelope.received_at
        return bury(envelope.job, envelope.record, error, step=self._name, received_at=received_at)

    def _go_on(self, call_id: str, content: str) -> Iterator[tuple[str, object]]:
        call = self._open.pop(call_id)
        record = call.envelope.record
        told = (ANSWER_HEADER, content.encode("utf-8", errors="replace"))
        yield self._next(
            call.key, replace(call.envelope, record=replace(record, headers=(*record.headers, told))), content
        )

    def _next(self, key: str, envelope: Envelope[ToolRequested], content: str) -> tuple[str, object]:
        """The next turn, of the call's message, which carries the answer: so do its dead letter and a redrive."""
        try:
            request = resumed(envelope.body, content)
        except Poison as error:
            return key, self._buried(envelope, error)
        return key, Envelope(job_of(request), request, envelope.record, envelope.received_at)

    def _due(self, call: _Open) -> float:
        job = call.envelope.job
        if self._cancellations.of(job.tenant, job.job_id) is not None:
            return 0.0
        return max(call.envelope.body.answer_until.timestamp(), call.seen_at + self._policy.grace_s)

    def notify_at(self) -> datetime | None:
        look_at = self._lookout.next_at(call.envelope.record for call in self._open.values())
        moments = [self._due(call) for call in self._open.values()]
        moments += [look_at] if self._open else []
        moments += [at + EARLY_S for at, _ in self._early.values()]
        return at_unix(min(moments)) if moments else None

    def snapshot(self) -> _Snapshot:
        for call in self._open.values():
            if call.plain is None:
                call.plain = _CODEC.dump_python(call.envelope)
        calls = [(call.key, call.plain) for call in self._open.values()]
        early = [(call_id, at, answer.model_dump_json()) for call_id, (at, answer) in self._early.items()]
        return SNAPSHOT_VERSION, calls, early, self._over.snapshot


def _timed(envelope: Envelope[ToolCompleted]) -> ToolCompleted:
    """An answer that does not say when it was completed: when it was produced, not when it is read."""
    answer = envelope.body
    if "completed_at" in answer.model_fields_set:
        return answer
    return answer.model_copy(update={"completed_at": envelope.record.timestamp})


_Keyed = KeyedStream[Envelope[Any]]


@operator
def resume(
    step_id: str,
    asked: KeyedStream[Envelope[ToolRequested]],
    answered: KeyedStream[Envelope[ToolCompleted]],
    runtime: Runtime,
    policy: ResumePolicy = ResumePolicy(),  # frozen
    clock: Callable[[], datetime] = utc_now,
) -> Outcome[RequestSubmitted]:
    """The next turn of each job whose tool has answered."""
    name = flow_step(step_id)

    merged = op.merge("all", cast("_Keyed", asked), cast("_Keyed", answered))
    buckets = op.key_on("bucket", merged, lambda keyed: f"{crc32(keyed[1].job.job_id.encode()) % BUCKETS:02x}")
    joined = op.key_rm(
        "joined",
        op.stateful_batch(
            "work", buckets, lambda resume: _Bucket(name, policy, clock, runtime.cancellations, runtime.tracer, resume)
        ),
    )
    outcome, said = sort_out(joined)
    write("statuses", op.filter_map_value("status", said, record_said), runtime)
    return outcome
