"""Stop what runs away, and ask a person: the depth, age, number, tokens and repeats of jobs under one root job.

Guarantee: what a limit stops makes no call until a person has approved it; then it passes that limit and those before
it, in the order of `_REASONS`, however long that took; and the limit is raised for its root, to what the job needs by
then at least. Whoever is rejected, or waits until the review expires, ends as a dead letter. A decision for what nobody
stopped, or what is decided already, is counted and logged, and changes nothing. Whether the request or its decision is
read first, as after a crash, does not matter.

A request that is cancelled passes, uncounted: `infer` ends it.

A root is the first job of a chain; children name it. A chain of one, the usual request, is checked for its prompt's
size alone and leaves no state, so what it asks and uses before its first child counts only if it offers tools
(after a crash, what it used counts only if that is read after the request).

State: hash buckets of roots, each with its jobs, prompts and tokens, for `remember_s` after it was last heard of, or
while something of it waits; what waits for a decision; and decisions that came before their requests. Dead letters:
rejected by a reviewer; no decision in time; stopped while `max_waiting` others wait.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, cast
from weakref import finalize
from zlib import crc32

import bytewax.operators as op
import structlog
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from prometheus_client import Counter, Gauge
from pydantic import TypeAdapter, ValidationError

from connectors.cancellations import Cancellations, Lookout
from connectors.kafka.record import OutgoingRecord
from connectors.tracing.port import Tracer
from operators.dedup import DedupPolicy, Generations, GenerationsSnapshot
from operators.digests import digest_of
from operators.envelope import Envelope
from operators.offload import STATE_SECONDS
from operators.outcome import Outcome, bury, flow_step, sort_out
from operators.runtime import Runtime
from operators.traced import caused, record_said
from operators.write import write
from schemas.dead_letter import DeadLetter
from schemas.errors import Fatal, GaveUp, Poison
from schemas.event import at_unix, derive_id, utc_now
from schemas.jobs import JobState, StatusChanged
from schemas.requests import RequestSubmitted
from schemas.reviews import Ancestor, Limit, ReviewDecided, ReviewRequested
from schemas.usage import TokensUsed

log = structlog.get_logger()

STOPPED = Counter("headrace_guard_stopped_total", "Jobs that a guard has stopped for a review", ["limit"])
IGNORED = Counter("headrace_review_decisions_ignored_total", "Decisions for jobs that do not wait for one")
REVIEWS_OPEN = Gauge("headrace_reviews_open", "Jobs that wait for a person, of those that this process has.")

BUCKETS = 1024  # keys of the state: one for many roots, since bytewax keeps some 800 bytes for each
ROOTS = 256  # per bucket; beyond that the ones that were silent longest are forgotten
COUNTED = DedupPolicy(remember_s=24 * 3600.0, bucket_ids=512)  # settlements and decisions, so that a repeat counts once
EARLY_S = 600.0  # how long a decision waits for its request: after a crash both are read again, side by side
EARLY = 100  # of them, per bucket
SNAPSHOT_VERSION = 2  # 1 had no early decisions


class RejectedByReviewer(Poison):
    """A person has decided against the job."""


@dataclass(frozen=True)
class GuardPolicy:
    """What one root job may set off."""

    max_depth: int = 8  # inferences one after the other: the root's own is the first
    max_age_s: int = 24 * 3600  # from the first that was heard of it
    max_jobs: int = 100
    max_tokens: int = 1_000_000
    max_repeats: int = 3  # of one conversation, word for word
    max_prompt_chars: int = 50_000
    review_s: float = 7 * 24 * 3600.0  # how long a person has
    max_waiting: int = 50  # of one tenant's, per bucket: each holds its whole request, up to 1 MB
    remember_s: float = 2 * 24 * 3600.0

    def of(self, limit: Limit) -> int:
        """The limit of that name."""
        limits: dict[Limit, int] = {
            "depth": self.max_depth,
            "age": self.max_age_s,
            "jobs": self.max_jobs,
            "tokens": self.max_tokens,
            "repeats": self.max_repeats,
            "prompt_size": self.max_prompt_chars,
        }
        return limits[limit]


_REASONS: dict[Limit, str] = {
    "depth": "this would be inference {value} one after the other, and {allowed} are allowed",
    "prompt_size": "its prompt has {value} characters, and {allowed} are allowed",
    "jobs": "this would be job {value} under its root, and {allowed} are allowed",
    "repeats": "this would be the same conversation for the {value}. time under its root, and {allowed} are allowed",
    "tokens": "the jobs under its root have used {value} tokens, and {allowed} are allowed",
    "age": "its root job has been running for {value} s, and {allowed} s are allowed",
}


@dataclass
class Root:
    """What is known of a root job and those under it."""

    first_seen: float
    last_seen: float
    tokens: int = 0
    jobs: dict[str, tuple[str | None, int]] = field(default_factory=dict)  # by id: parent and depth
    prompts: dict[bytes, list[str]] = field(default_factory=dict)  # by digest: who has asked it
    raised: dict[Limit, int] = field(default_factory=dict)  # by reviewers

    def values(self, request: RequestSubmitted, now: float) -> dict[Limit, int]:
        """What the request would make of each limit."""
        asked_by = self.prompts.get(prompt_digest(request), [])
        turn = _turn(request)
        return {
            "depth": request.depth + 1,
            "prompt_size": request.prompt_chars,
            "jobs": len(self.jobs) + (request.job_id not in self.jobs),
            "repeats": len(asked_by) + (turn not in asked_by),
            "tokens": self.tokens,
            "age": int(now - self.first_seen),
        }

    def exceeded(
        self, request: RequestSubmitted, policy: GuardPolicy, now: float, approved: Limit | None = None
    ) -> tuple[Limit, int, int] | None:
        """The first limit after `approved` that the request would break: its name, the value, and what is allowed."""
        values = self.values(request, now)
        ahead = list(_REASONS)
        for limit in ahead if approved is None else ahead[ahead.index(approved) + 1 :]:
            value = values[limit]
            allowed = max(policy.of(limit), self.raised.get(limit, 0))
            if value > allowed:
                return limit, value, allowed
        return None

    def add(self, request: RequestSubmitted, now: float) -> None:
        """Count a request that goes on; a repeat of it counts once."""
        self.last_seen = now
        self.jobs.setdefault(request.job_id, (request.parent_job_id, request.depth))
        asked_by = self.prompts.setdefault(prompt_digest(request), [])
        if _turn(request) not in asked_by:
            asked_by.append(_turn(request))

    def ancestors(self, request: RequestSubmitted) -> tuple[Ancestor, ...]:
        """From the root down to the parent, as far as known."""
        chain: list[Ancestor] = []
        parent = request.parent_job_id
        while parent is not None and all(parent != each.job_id for each in chain):
            above, depth = self.jobs.get(parent, (None, max(request.depth - 1 - len(chain), 0)))
            chain.append(Ancestor(job_id=parent, depth=depth))
            parent = above
        if request.root != request.job_id and all(request.root != each.job_id for each in chain):
            chain.append(Ancestor(job_id=request.root, depth=0))
        return tuple(reversed(chain))


def prompt_digest(request: RequestSubmitted) -> bytes:
    """Of the whole conversation: two requests of one digest ask the same, word for word."""
    return digest_of("".join(f"{turn.role}:{len(turn.content)}:{turn.content}" for turn in request.turns))


def _turn(request: RequestSubmitted) -> str:
    return f"{request.job_id}/{request.depth}"


def is_plain(request: RequestSubmitted, policy: GuardPolicy) -> bool:
    """A chain of one, of a usual size."""
    return (
        request.depth == 0
        and request.parent_job_id is None
        and request.root_job_id is None
        and not request.tools
        and request.prompt_chars <= policy.max_prompt_chars
    )


@dataclass
class _Held:
    """A request that waits for a person."""

    key: str
    envelope: Envelope[RequestSubmitted]
    limit: Limit
    value: int
    expires_at: float
    plain: object = None


class _OpenReviews:
    """What the gauge has of one bucket; nothing any more once the bucket is gone."""

    def __init__(self, bucket: "_Bucket") -> None:
        self._told = 0
        finalize(bucket, self.are, 0).atexit = False

    def are(self, waiting: int) -> None:
        if waiting != self._told:
            REVIEWS_OPEN.inc(waiting - self._told)
            self._told = waiting


_Snapshot = tuple[int, list[tuple[Any, ...]], list[tuple[Any, ...]], GenerationsSnapshot, list[tuple[float, str]]]

_CODEC: TypeAdapter[Envelope[RequestSubmitted]] = TypeAdapter(Envelope[RequestSubmitted])


class _Bucket(StatefulBatchLogic[tuple[str, Envelope[Any]], tuple[str, object], _Snapshot]):
    """Some roots, and what of theirs waits for a person."""

    def __init__(
        self,
        name: str,
        policy: GuardPolicy,
        clock: Callable[[], datetime],
        cancellations: Cancellations,
        tracer: Tracer,
        resume: _Snapshot | None,
    ) -> None:
        self._name = name
        self._policy = policy
        self._tracer = tracer
        self._cancellations = cancellations
        self._lookout = Lookout(cancellations)
        self._clock = clock
        self._roots: dict[str, Root] = {}
        self._held: dict[str, _Held] = {}  # by review id
        self._early: dict[tuple[str, str], tuple[float, ReviewDecided]] = {}  # by review and job: when it came
        self._counted = Generations(COUNTED, self._now())
        self._held_s = STATE_SECONDS.labels(name, "held")
        self._open = _OpenReviews(self)
        if resume is not None:
            self._restore(resume)
            self._open.are(len(self._held))

    def _restore(self, resume: _Snapshot) -> None:
        version, roots, held, counted, *early = resume
        if version not in {1, SNAPSHOT_VERSION}:
            raise Fatal(
                f"{self._name}: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it"
            )
        self._roots = {root_id: Root(*fields) for root_id, *fields in roots}
        self._counted = Generations.restored(COUNTED, counted)
        for review_id, key, plain, limit, value, expires_at in held:
            try:
                envelope = _CODEC.validate_python(plain)
            except ValidationError as error:
                raise Fatal(
                    f"{self._name}: a request that waits for a review does not fit this release; decide the reviews "
                    "with the release that wrote it"
                ) from error
            self._held[review_id] = _Held(key, envelope, limit, value, expires_at, plain)
        for at, decision in chain.from_iterable(early):
            decided = ReviewDecided.model_validate_json(decision)
            self._early[decided.review_id, decided.job_id] = at, decided

    def _now(self) -> float:
        return self._clock().timestamp()

    def on_batch(self, values: list[tuple[str, Envelope[Any]]]) -> tuple[list[tuple[str, object]], bool]:
        emitted: list[tuple[str, object]] = []
        now = self._now()
        for key, envelope in values:
            match envelope.body:
                case TokensUsed() as used:
                    self._count(used, now)
                case ReviewDecided() as decided:
                    emitted += self._decide(decided, now)
                case _:
                    emitted += self._check(key, envelope, now)
        self._forget(now)
        self._open.are(len(self._held))
        return emitted, self._is_empty

    def on_notify(self) -> tuple[list[tuple[str, object]], bool]:
        """Give up what nobody has decided, and decisions for what nobody has stopped; let go what is cancelled."""
        now = self._now()
        emitted: list[tuple[str, object]] = []
        self._lookout.looked()
        for review_id in [each for each, held in self._held.items() if self._is_cancelled(held.envelope)]:
            held = self._let_go(review_id, now)
            self._counted.add(digest_of(review_id), now)  # a decision comes too late
            emitted.append((held.key, held.envelope))
        for review_id in [each for each, held in self._held.items() if held.expires_at <= now]:
            held = self._let_go(review_id, now)
            days = self._policy.review_s / 86_400
            error = GaveUp(f"nobody has decided its review within {days:g} days ({held.limit})")
            emitted.append((held.key, self._buried(held.envelope, error)))
        for early in [each for each, (at, _) in self._early.items() if at + EARLY_S <= now]:
            self._ignore(self._early.pop(early)[1])
        self._open.are(len(self._held))
        return emitted, self._is_empty

    @property
    def _is_empty(self) -> bool:
        return not self._roots and not self._held and not self._early

    def _root(self, root_id: str, now: float) -> Root:
        root = self._roots.pop(root_id, None) or Root(now, now)
        root.last_seen = now
        self._roots[root_id] = root  # at the end: in the order in which they were heard of
        return root

    def _count(self, used: TokensUsed, now: float) -> None:
        # The usage of a child may be read before the child, as after a crash; that of a chain of one makes no root.
        known = used.root_job_id in self._roots or used.root_job_id != used.job_id
        if used.tokens and known and self._counted.add(digest_of(used.admission_id), now):
            self._root(used.root_job_id, now).tokens += used.tokens

    def _check(
        self, key: str, envelope: Envelope[RequestSubmitted], now: float, approved: Limit | None = None
    ) -> Iterator[tuple[str, object]]:
        request = envelope.body
        if self._is_cancelled(envelope):
            yield key, envelope
            return
        root = self._root(request.root, now)
        exceeded = root.exceeded(request, self._policy, now, approved)
        if exceeded is None:
            root.add(request, now)
            yield key, envelope
            return
        limit, value, allowed = exceeded
        record = envelope.record
        # Of the message: a replay of it asks the same, and a job that is sent again, or redriven, asks anew.
        review_id = derive_id("review", _turn(request), limit, record.origin)
        reason = _REASONS[limit].format(value=value, allowed=allowed)
        if not self._waits(request, limit):
            waiting = sum(held.envelope.job.tenant == request.tenant for held in self._held.values())
            if waiting >= self._policy.max_waiting and (review_id, request.job_id) not in self._early:
                full = f"stopped: {reason}; {waiting} jobs of its tenant wait for a review already"
                error = GaveUp(f"{full}: decide those, then redrive this one")
                yield key, self._buried(envelope, error)
                return
            STOPPED.labels(limit).inc()
            expires_at = now + self._policy.review_s
            self._held[review_id] = _Held(key, envelope, limit, value, expires_at)
            review = ReviewRequested(
                job_id=request.job_id,
                tenant=request.tenant,
                review_id=review_id,
                root_job_id=request.root,
                limit=limit,
                value=value,
                allowed=allowed,
                reason=reason,
                depth=request.depth,
                ancestors=root.ancestors(request),
                prompt_chars=request.prompt_chars,
                origin=record.origin,
                expires_at=at_unix(expires_at),
            )
            yield key, caused(review, envelope, step=self._name, tracer=self._tracer)
        yield key, self._status(envelope, JobState.AWAITING_REVIEW, f"stopped: {reason}", needs_review=True)
        early = self._early.pop((review_id, request.job_id), None)
        if early is not None:
            yield from self._decide(early[1], now)

    def _decide(self, decided: ReviewDecided, now: float) -> Iterator[tuple[str, object]]:
        held = self._held.get(decided.review_id)
        if held is None and digest_of(decided.review_id) not in self._counted:
            self._early.setdefault((decided.review_id, decided.job_id), (now, decided))  # the first one counts
            if len(self._early) > EARLY:
                self._ignore(self._early.pop(next(iter(self._early)))[1])
            return
        if held is None or held.envelope.job.job_id != decided.job_id:
            self._ignore(decided)
            return
        self._let_go(decided.review_id, now)
        self._counted.add(digest_of(decided.review_id), now)
        by = f" by {decided.reviewer}" if decided.reviewer else ""
        note = f": {decided.note}" if decided.note else ""
        if decided.decision == "reject":
            error = RejectedByReviewer(f"rejected{by}{note}")
            yield held.key, self._buried(held.envelope, error)
            return
        root = self._root(held.envelope.body.root, now)
        # At least what the job needs by now, which time and siblings have changed: it was approved.
        needed = max(held.value, root.values(held.envelope.body, now)[held.limit])
        root.raised[held.limit] = max(decided.allowed or 0, needed, root.raised.get(held.limit, 0))
        yield held.key, self._status(held.envelope, JobState.RUNNING, f"approved{by}{note}")
        yield from self._check(held.key, held.envelope, now, held.limit)

    def _let_go(self, review_id: str, now: float) -> _Held:
        held = self._held.pop(review_id)
        self._held_s.observe(max(0.0, now - held.envelope.received_at.timestamp()))
        return held

    def _is_cancelled(self, envelope: Envelope[RequestSubmitted]) -> bool:
        return self._cancellations.of(envelope.job.tenant, envelope.job.job_id) is not None

    def _waits(self, request: RequestSubmitted, limit: Limit) -> bool:
        """Whether the same turn of the job waits already, by whichever message."""
        return any(
            (held.limit, held.envelope.job.tenant, _turn(held.envelope.body)) == (limit, request.tenant, _turn(request))
            for held in self._held.values()
        )

    def _ignore(self, decided: ReviewDecided) -> None:
        IGNORED.inc()
        log.warning(
            "decision ignored: the job does not wait for it",
            job_id=decided.job_id,
            tenant=decided.tenant,
            step=self._name,
            review_id=decided.review_id,
        )

    def _status(
        self, envelope: Envelope[RequestSubmitted], state: JobState, detail: str, *, needs_review: bool = False
    ) -> OutgoingRecord:
        job = envelope.job
        status = StatusChanged(
            job_id=job.job_id, tenant=job.tenant, state=state, step=self._name, detail=detail, needs_review=needs_review
        )
        return caused(status, envelope, step=self._name, tracer=self._tracer)

    def _buried(self, envelope: Envelope[RequestSubmitted], error: Exception) -> DeadLetter:
        received_at = envelope.received_at
        return bury(envelope.job, envelope.record, error, step=self._name, received_at=received_at)

    def _forget(self, now: float) -> None:
        """Roots that have been silent for long, the oldest first; not those of which something waits."""
        silent_since = now - self._policy.remember_s
        waited_for = {held.envelope.body.root for held in self._held.values()}
        for root_id, root in list(self._roots.items()):
            if root.last_seen > silent_since and len(self._roots) <= ROOTS:
                return
            if root_id not in waited_for:
                del self._roots[root_id]

    def notify_at(self) -> datetime | None:
        look_at = self._lookout.next_at(held.envelope.record for held in self._held.values())
        moments = [held.expires_at for held in self._held.values()]
        moments += [look_at] if self._held else []
        moments += [at + EARLY_S for at, _ in self._early.values()]
        return at_unix(min(moments) + 0.001) if moments else None

    def snapshot(self) -> _Snapshot:
        for held in self._held.values():
            if held.plain is None:
                held.plain = _CODEC.dump_python(held.envelope)
        roots = [
            (
                *(root_id, root.first_seen, root.last_seen, root.tokens, dict(root.jobs)),
                *({digest: list(turns) for digest, turns in root.prompts.items()}, dict(root.raised)),
            )
            for root_id, root in self._roots.items()
        ]
        waiting = [
            (review_id, held.key, held.plain, held.limit, held.value, held.expires_at)
            for review_id, held in self._held.items()
        ]
        early = [(at, decided.model_dump_json()) for at, decided in self._early.values()]
        return SNAPSHOT_VERSION, roots, waiting, self._counted.snapshot, early


_Keyed = KeyedStream[Envelope[Any]]


def _bucket(keyed: tuple[str, Envelope[Any]]) -> str:
    body = keyed[1].body
    root = body.root if isinstance(body, RequestSubmitted) else body.root_job_id
    return f"{crc32(root.encode()) % BUCKETS:03x}"


@operator
def guard(
    step_id: str,
    up: KeyedStream[Envelope[RequestSubmitted]],
    used: KeyedStream[Envelope[TokensUsed]],
    decided: KeyedStream[Envelope[ReviewDecided]],
    policy: GuardPolicy,
    runtime: Runtime,
    clock: Callable[[], datetime] = utc_now,
) -> Outcome[RequestSubmitted]:
    """Let through what stays within the limits of its root job; the rest waits for a person."""
    name = flow_step(step_id)

    parted = op.branch("plain", up, lambda keyed: is_plain(keyed[1].body, policy))
    merged = op.merge("all", cast("_Keyed", parted.falses), cast("_Keyed", used), cast("_Keyed", decided))
    buckets = op.key_on("bucket", merged, _bucket)
    checked = op.key_rm(
        "checked",
        op.stateful_batch(
            "work", buckets, lambda resume: _Bucket(name, policy, clock, runtime.cancellations, runtime.tracer, resume)
        ),
    )
    outcome, said = sort_out(checked)
    write("events", op.filter_map_value("event", said, record_said), runtime)
    return Outcome(op.merge("passed", parted.trues, outcome.oks), outcome.errs)
