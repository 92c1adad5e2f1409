"""What a job's events say about it: pure, so that a command, a gateway and a test come to the same answer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from schemas.callbacks import CallbackDeferred
from schemas.cancellations import CancelRequested
from schemas.dead_letter import MAX_REDRIVES, DeadLetter
from schemas.jobs import JobState, StatusChanged
from schemas.results import ResultCompleted
from schemas.topics import topic_of

CALLBACKS = topic_of(CallbackDeferred).name
SILENCE = timedelta(minutes=15)
"""An inference has a few attempts of 120 s: a job that says nothing for longer is stuck, or no flow runs."""


_NEVER = datetime.min.replace(tzinfo=UTC)
"""For a case that is not asked whether it has been silent."""


class Standing(StrEnum):
    """Where a job stands, for whoever asks; finer than a status, since it knows of submissions and redrives."""

    ACCEPTED = "accepted"  # submitted, and no step has taken it up
    RUNNING = "running"
    RETRYING = "retrying"
    DEFERRED = "deferred"
    AWAITING_REVIEW = "awaiting_review"
    AWAITING_TOOL = "awaiting_tool"
    REDRIVEN = "redriven"  # and not yet taken up again
    COMPLETED = "completed"
    DEAD_LETTERED = "dead_lettered"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Nothing more happens by itself."""
        return self in {Standing.COMPLETED, Standing.DEAD_LETTERED, Standing.CANCELLED}


@dataclass(frozen=True)
class BuriedMessage:
    """A dead letter of the job, and when it was redriven, if it was. `letter` need not carry the message's value."""

    letter: DeadLetter
    redriven_at: datetime | None = None


@dataclass(frozen=True)
class IndexedDocument:
    """The job's document is in the index, or removed from it."""

    at: datetime
    chunks: int
    deleted: bool = False
    tenant: str | None = None


@dataclass(frozen=True)
class Submission:
    """The job's own message on a topic that producers write."""

    topic: str
    at: datetime
    tenant: str | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything that the topics hold about one job, in any order and with repeats."""

    job_id: str
    statuses: Sequence[StatusChanged] = ()
    buried: Sequence[BuriedMessage] = ()
    result: ResultCompleted | None = None
    indexed: IndexedDocument | None = None
    submitted: Submission | None = None
    replaced_by: str | None = None  # a later job that has indexed another version of the job's document
    cancel: CancelRequested | None = None  # the first one of its tenant; by itself it makes no job known

    @property
    def known(self) -> bool:
        """Whether any topic has heard of the job."""
        return bool(self.statuses or self.buried or self.result or self.indexed or self.submitted)

    @property
    def tenant(self) -> str | None:
        """Whose job it is: who was served, or came first. A message under its id makes it nobody else's."""
        statuses = sorted(self.statuses, key=_rank)
        letters = sorted(
            (each.letter for each in self.buried), key=lambda letter: (not letter.ends_job, letter.failed_at)
        )
        heard = (self.result, self.indexed, self.submitted, *statuses, *letters)
        return next((each.tenant for each in heard if each is not None and each.tenant is not None), None)

    def first_of(self, cancels: Iterable[CancelRequested]) -> CancelRequested | None:
        """The first wish to end the job that counts: one of its own tenant, as far as that is known."""
        own = [cancel for cancel in cancels if self.tenant in {cancel.tenant, None}]
        return min(own, key=lambda cancel: cancel.requested_at, default=None)

    @property
    def cancel_requested(self) -> CancelRequested | None:
        """Its own tenant's wish; another's means nothing."""
        cancel = self.cancel
        return cancel if cancel is not None and self.tenant in {cancel.tenant, None} else None


@dataclass(frozen=True)
class Moment:
    """One line of a job's timeline."""

    at: datetime
    what: str  # a status's state, or `submitted`, `answered`, `indexed`, `dead letter`, `redriven`, `cancel requested`
    where: str  # step or topic
    detail: str = ""


@dataclass(frozen=True)
class Retry:
    """A dead letter that may be redriven without harm."""

    dead_letter_id: str
    why: str

    @property
    def command(self) -> str:
        """What does it."""
        return f"headrace dlq redrive {self.dead_letter_id}"


@dataclass(frozen=True)
class Outline:
    """What a list of jobs says about one: the same as its explanation, for a fraction of the work."""

    tenant: str
    kind: str  # `request` or `document`
    standing: Standing
    step: str  # that was heard of last; empty before the first
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True)
class Explanation:
    """A job's timeline, and the five questions about it."""

    job_id: str
    tenant: str
    kind: str  # `request` or `document`
    standing: Standing
    where: str
    succeeded: tuple[str, ...]
    retry: tuple[Retry, ...]
    escalate: tuple[str, ...]
    user_sees: str  # one sentence, without names of ours
    timeline: tuple[Moment, ...]


def explain(
    evidence: Evidence, *, now: datetime, max_redrives: int = MAX_REDRIVES, silence: timedelta = SILENCE
) -> Explanation:
    """Answer from events that may be late, repeated, out of order or compacted away; `evidence` must be `known`.

    The latest end decides: a completion, a dead letter that ends the job and was not redriven, or its cancellation,
    which changes nothing if the job was completed. Without one, what steps said after the last redriven dead letter.
    Only clocks of flows are compared with each other; that of whoever redrives may be wrong. The order of the evidence
    does not matter.
    """
    case = _Case(_known(evidence), now, max_redrives, silence)
    return Explanation(
        job_id=evidence.job_id,
        tenant=case.tenant,
        kind=case.kind,
        standing=case.standing,
        where=case.where(),
        succeeded=tuple(case.succeeded()),
        retry=tuple(case.retry()),
        escalate=tuple(case.escalate()),
        user_sees=case.user_sees(),
        timeline=timeline(evidence),
    )


def outline(evidence: Evidence) -> Outline:
    """The part of the explanation that does not depend on when it is asked for; `evidence` must be `known`."""
    case = _Case(_known(evidence), _NEVER, MAX_REDRIVES, SILENCE)
    times = list(_times(evidence))
    return Outline(case.tenant, case.kind, case.standing, case.step, min(times), max(times))


def _known(evidence: Evidence) -> Evidence:
    if not evidence.known:
        raise ValueError(f"job {evidence.job_id}: there is nothing to explain it by")
    return evidence


def _times(evidence: Evidence) -> Iterator[datetime]:
    """When each moment of the timeline was."""
    if evidence.submitted is not None:
        yield evidence.submitted.at
    yield from (status.occurred_at for status in evidence.statuses)
    for each in evidence.buried:
        yield each.letter.failed_at
        if each.redriven_at is not None:
            yield each.redriven_at
    if evidence.result is not None:
        yield evidence.result.completed_at
    if evidence.indexed is not None:
        yield evidence.indexed.at
    if evidence.cancel_requested is not None:
        yield evidence.cancel_requested.requested_at


def timeline(evidence: Evidence) -> tuple[Moment, ...]:
    """Everything that happened, oldest first, repeats left out."""
    return tuple(sorted(set(_moments(evidence)), key=lambda each: (each.at, each.what, each.where, each.detail)))


def _moments(evidence: Evidence) -> Iterator[Moment]:
    if evidence.submitted is not None:
        yield Moment(evidence.submitted.at, "submitted", evidence.submitted.topic)
    for status in evidence.statuses:
        review = "needs review: " if status.needs_review else ""
        yield Moment(status.occurred_at, status.state, status.step, review + _detail(status))
    for each in evidence.buried:
        letter = each.letter
        attempts = f"{letter.attempts} attempt{'s' * (letter.attempts != 1)}"
        detail = f"{letter.event_id}, {letter.error_class} after {attempts}: {letter.message}"
        yield Moment(letter.failed_at, "dead letter", letter.step, detail)
        if each.redriven_at is not None:
            yield Moment(each.redriven_at, "redriven", letter.topic, letter.event_id)
    cancel = evidence.cancel_requested
    if cancel is not None:
        yield Moment(cancel.requested_at, "cancel requested", "cancellations.requested", cancel.reason or "")
    if evidence.result is not None:
        yield Moment(evidence.result.completed_at, "answered", evidence.result.model)
    if evidence.indexed is not None:
        done = "removed" if evidence.indexed.deleted else f"{evidence.indexed.chunks} chunks"
        yield Moment(evidence.indexed.at, "indexed", "documents.indexed", done)


def _detail(status: StatusChanged) -> str:
    return status.detail or (f"attempt {status.attempt}" if status.attempt > 1 else "")


def _rank(status: StatusChanged) -> tuple[datetime, int, str, str]:
    return status.occurred_at, status.attempt, status.state, status.step


_SEEN = {
    Standing.ACCEPTED: "has been received and waits to be processed",
    Standing.RUNNING: "is being processed",
    Standing.AWAITING_TOOL: "is being processed",
    Standing.RETRYING: "is taking longer than usual; we keep trying, and you need not do anything",
    Standing.AWAITING_REVIEW: "was stopped, and a person decides whether it goes on",
    Standing.REDRIVEN: "has been started again and waits to be processed",
    Standing.CANCELLED: "was cancelled",
}


class _Case:
    """One job's evidence, put in order."""

    def __init__(self, evidence: Evidence, now: datetime, max_redrives: int, silence: timedelta) -> None:
        self.evidence = evidence
        self.now = now
        self.max_redrives = max_redrives
        self.silence = silence
        self.statuses = sorted(evidence.statuses, key=_rank)
        self.buried = sorted(evidence.buried, key=lambda each: (each.letter.failed_at, each.letter.event_id))
        self.ending = [each for each in self.buried if each.letter.ends_job]
        self.completed_at = max(self._completions(), default=None)
        self.cancelled = [status for status in self.statuses if status.state is JobState.CANCELLED]
        self.unexplained = [status for status in self.statuses if self._has_no_letter(status)]
        self.standing = self._stand()

    def _completions(self) -> Iterator[datetime]:
        yield from (status.occurred_at for status in self.statuses if status.state is JobState.COMPLETED)
        if self.evidence.result is not None:
            yield self.evidence.result.completed_at
        if self.evidence.indexed is not None:
            yield self.evidence.indexed.at

    def _has_no_letter(self, status: StatusChanged) -> bool:
        """A step gave up, and its dead letter is not there: it has expired. A letter is written before its status."""
        return status.state is JobState.DEAD_LETTERED and not any(
            each.letter.step == status.step and each.letter.failed_at <= status.occurred_at for each in self.ending
        )

    @property
    def open(self) -> list[BuriedMessage]:
        """Dead letters that still matter: not redriven, and the job was not completed since, nor cancelled."""
        if self.standing is Standing.CANCELLED:
            return []
        return [
            each
            for each in self.ending
            if each.redriven_at is None and (self.completed_at is None or each.letter.failed_at > self.completed_at)
        ]

    def _stand(self) -> Standing:
        dead = [each.letter.failed_at for each in self.ending if each.redriven_at is None]
        dead += [status.occurred_at for status in self.unexplained]
        if self.completed_at is not None and self.completed_at >= max(dead, default=self.completed_at):
            return Standing.COMPLETED
        if self.cancelled and self.cancelled[-1].occurred_at >= max(dead, default=self.cancelled[-1].occurred_at):
            return Standing.CANCELLED
        if dead:
            return Standing.DEAD_LETTERED
        spoken = self._spoken()
        if spoken is not None:
            return Standing(spoken.state.value)
        return Standing.REDRIVEN if self.ending else Standing.ACCEPTED

    def _spoken(self) -> StatusChanged | None:
        """What a step said last about work under way: after the last dead letter, if there is any."""
        failed_at = max((each.letter.failed_at for each in self.ending), default=None)
        said = [
            status
            for status in self.statuses
            if not status.state.terminal and (failed_at is None or status.occurred_at > failed_at)
        ]
        return said[-1] if said else None

    @property
    def tenant(self) -> str:
        return self.evidence.tenant or "default"

    @property
    def kind(self) -> str:
        if self.evidence.result is not None:
            return "request"
        topics = [each.letter.topic for each in self.buried]
        if self.evidence.submitted is not None:
            topics.append(self.evidence.submitted.topic)
        about_documents = any(topic.startswith("documents.") for topic in topics)
        named = any(status.document_id is not None for status in self.statuses)
        return "document" if self.evidence.indexed is not None or about_documents or named else "request"

    @property
    def step(self) -> str:
        """Whoever was heard of last."""
        said = [(status.occurred_at, status.step) for status in self.statuses[-1:]]
        said += [(each.letter.failed_at, each.letter.step) for each in self.ending[-1:]]
        return max(said)[1] if said else ""

    def _last_end(self) -> tuple[str, str]:
        """Step and reason of the dead end that decides."""
        ends = [(each.letter.failed_at, each.letter.step, each.letter.message) for each in self.open]
        ends += [(status.occurred_at, status.step, status.detail or "no reason given") for status in self.unexplained]
        _, step, reason = max(ends)
        return step, reason

    def where(self) -> str:
        asked = self.evidence.cancel_requested is not None and not self.standing.ended
        return self._place() + ("; its cancellation was requested" if asked else "")

    def _place(self) -> str:  # noqa: PLR0911  # one return per standing
        match self.standing:
            case Standing.ACCEPTED:
                submitted = self.evidence.submitted
                return f"accepted on {submitted.topic if submitted else 'its topic'}; not yet taken up"
            case Standing.REDRIVEN:
                return f"redriven to {self.ending[-1].letter.topic}; not yet taken up again"
            case Standing.COMPLETED:
                return "completed"
            case Standing.DEAD_LETTERED:
                step, reason = self._last_end()
                before = "" if self.completed_at is None else ", after it had been completed before"
                return f"given up by {step}{before}: {reason}"
            case Standing.CANCELLED:
                return f"cancelled in {self.cancelled[-1].step}: {self.cancelled[-1].detail or 'no reason given'}"
            case _:
                spoken = self._spoken()
                if spoken is None:
                    return self.standing
                again = ", again after a redrive" if self.ending else ""
                detail = _detail(spoken)
                return f"{spoken.state} in {spoken.step}{again}" + (f": {detail}" if detail else "")

    def succeeded(self) -> Iterator[str]:
        result, indexed = self.evidence.result, self.evidence.indexed
        if result is not None:
            estimated = ", estimated" if result.usage.estimated else ""
            yield (
                f"answered by {result.model} with {len(result.citations)} citations "
                f"({result.usage.prompt_tokens} + {result.usage.completion_tokens} tokens{estimated})"
            )
        if indexed is not None:
            yield (
                "the document was removed from the index" if indexed.deleted else f"indexed in {indexed.chunks} chunks"
            )
        if result is None and indexed is None and self.completed_at is not None:
            yield "completed; the result itself is no longer kept on its topic"
        if self.completed_at is None:
            gave_up = {each.letter.step for each in self.ending} | {status.step for status in self.unexplained}
            redriven_from = max((each.letter.failed_at for each in self.ending if each.redriven_at), default=None)
            steps = list(
                dict.fromkeys(
                    status.step
                    for status in self.statuses
                    if not status.state.terminal and (redriven_from is None or status.occurred_at > redriven_from)
                )
            )
            passed = [step for step in steps[:-1] if step not in gave_up]
            if steps and self.standing is Standing.DEAD_LETTERED and steps[-1] not in gave_up:
                passed.append(steps[-1])
            yield from (f"{step} is done" for step in passed)

    def _untold(self) -> Iterator[DeadLetter]:
        """Callbacks that were not delivered; the job itself is as it ended."""
        for each in self.buried:
            if each.letter.topic == CALLBACKS and each.redriven_at is None:
                yield each.letter

    def _escalate_beside_the_job(self) -> Iterator[str]:
        for letter in self._untold():
            if not letter.retryable:
                yield (
                    f"dead letter {letter.event_id}: the job's end was not told to its callback URL: {letter.message}"
                )
        for each in self.buried:
            letter = each.letter
            if not letter.ends_job and each.redriven_at is None and letter.topic != CALLBACKS:
                yield (
                    f"dead letter {letter.event_id}: another message under this job's id was refused: {letter.message}"
                )

    def _came_too_late(self, letter: DeadLetter) -> bool:
        return self.evidence.replaced_by is not None and letter.topic.startswith("documents.")

    def retry(self) -> Iterator[Retry]:
        for each in self.open:
            letter = each.letter
            if letter.retryable and letter.redrives < self.max_redrives and not self._came_too_late(letter):
                so_far = f", redriven {letter.redrives} of {self.max_redrives} times" if letter.redrives else ""
                yield Retry(letter.event_id, f"{letter.step} ran out of attempts or time{so_far}")
        for letter in self._untold():
            if letter.retryable:
                yield Retry(letter.event_id, f"the job's end was not told to its callback URL: {letter.message}")

    def escalate(self) -> Iterator[str]:
        for each in self.open:
            letter = each.letter
            if letter.left_out_bytes is not None:
                yield (
                    f"dead letter {letter.event_id} cannot be redriven: its message, of {letter.left_out_bytes:,} "
                    f"bytes, was too large for it and is only at {letter.place}; submit it anew: {letter.message}"
                )
            elif not letter.retryable:
                yield (
                    f"dead letter {letter.event_id} is {letter.error_class}: the message has to change before it is "
                    f"submitted again: {letter.message}"
                )
            elif letter.redrives >= self.max_redrives:
                yield (
                    f"dead letter {letter.event_id} has failed after {letter.redrives} redrives, and the limit is "
                    f"{self.max_redrives}: find the cause first"
                )
            elif self._came_too_late(letter):
                yield (
                    f"dead letter {letter.event_id}: job {self.evidence.replaced_by} has since indexed the document; a "
                    "redrive of this older version would change nothing"
                )
        yield from self._escalate_beside_the_job()
        if self.standing is Standing.DEAD_LETTERED and self.unexplained and not self.open:
            yield "its dead letter is no longer kept, so it cannot be redriven: submit it anew"
        if not self.standing.ended:
            yield from self._review_and_silence()

    def _review_and_silence(self) -> Iterator[str]:
        spoken = self._spoken()
        if spoken is not None and spoken.needs_review:
            yield f"{spoken.step} wants a person to decide (headrace reviews): {spoken.detail or 'no reason given'}"
        if self.standing in {Standing.DEFERRED, Standing.AWAITING_REVIEW}:
            return
        last = max((each.at for each in timeline(self.evidence)), default=self.now)
        if self.now - last > self.silence:
            minutes = int((self.now - last).total_seconds() // 60)
            yield f"nothing has been heard of it for {minutes} minutes: do the flows run, and is there lag?"

    def user_sees(self) -> str:  # noqa: PLR0911  # one return per sentence
        thing = f"Your {self.kind}"
        if self.evidence.cancel_requested is not None and not self.standing.ended:
            return f"{thing} is being cancelled."
        match self.standing:
            case Standing.DEFERRED:
                return f"{thing} waits until your organisation's budget has room again{self._resumes()}."
            case Standing.COMPLETED if self.kind == "request":
                return "Your answer is ready."
            case Standing.COMPLETED:
                removed = self.evidence.indexed is not None and self.evidence.indexed.deleted
                return "Your document has been removed." if removed else "Your document can now be searched."
            case Standing.DEAD_LETTERED if any(True for _ in self.retry()):
                return f"{thing} could not be processed for now; we can start it again, and you need not send it again."
            case Standing.DEAD_LETTERED:
                return self._user_sees_no_way_on()
            case plain:
                return f"{thing} {_SEEN[plain]}."

    def _resumes(self) -> str:
        spoken = self._spoken()
        at = None if spoken is None else spoken.resume_at
        return "" if at is None else f", at {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC or later"

    def _user_sees_no_way_on(self) -> str:
        newest = max(self.open, key=lambda each: each.letter.failed_at, default=None)
        if (
            newest is None or newest.letter.error_class == "retryable"
        ):  # whose reason is about our parts, not about what the user sent
            return f"Your {self.kind} could not be processed; our support looks into it."
        return f"Your {self.kind} could not be processed: {newest.letter.message.rstrip('.')}."
