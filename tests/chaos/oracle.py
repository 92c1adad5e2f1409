"""What must hold after a run, judged by what the model server saw and by what the topics say."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from connectors.ledger.port import JobRecord

KNOWN_FAILURES = frozenset({"400", "401", "404", "429", "500", "503", "cut", "malformed", "not-utf8", "error", "hang"})
"""Faults after which the flow knows that it has no answer, and asks again as it promises to."""

CLOCK_S = 0.25  # between a call's last byte and the server's note of it, and between a kill and its record
COMMIT_S = 1.0  # how long a finished call may wait for its commit where two runs share two cores


@dataclass(frozen=True)
class Call:
    """One call, from the server's record."""

    job_id: str
    number: int
    outcome: str
    fault: str | None
    usage: tuple[int, int]
    began_at: float
    ended_at: float | None
    traceparent: str | None = None

    @property
    def spent(self) -> bool:
        """The provider may bill it, and no failure was told."""
        return self.fault not in KNOWN_FAILURES

    def open_at(self, kills: "Sequence[Kill]") -> bool:
        """A kill came between its beginning and the commit of its answer."""
        end = (self.ended_at or float("inf")) + COMMIT_S
        return any(self.began_at - CLOCK_S <= kill.seen_at and kill.at <= end for kill in kills)


def read_calls(record: Path) -> dict[str, list[Call]]:
    """The last line of each call, by job."""
    calls: dict[tuple[str, int], Call] = {}
    for line in record.read_text().splitlines():
        fields = json.loads(line)
        fields["usage"] = tuple(fields["usage"])
        call = Call(**fields)
        calls[call.job_id, call.number] = call
    found: dict[str, list[Call]] = {}
    for call in calls.values():
        found.setdefault(call.job_id, []).append(call)
    return found


@dataclass(frozen=True)
class Kill:
    """One death of a process."""

    point: str
    at: float  # Unix seconds: when it was decided
    seen_at: float  # when the process was seen to be dead: on a busy machine up to half a second later
    job_id: str | None = None  # whose claim, answer or commit it followed


@dataclass(frozen=True)
class Outcomes:
    """What the topics hold at the end, by job."""

    results: Mapping[str, frozenset[bytes]]  # distinct values
    indexed: frozenset[str]
    buried: frozenset[str]  # dead letters that end a job
    malformed: int  # dead letters of messages that are no events
    cancelled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Evidence:
    """Everything that a run left behind."""

    requests: frozenset[str]
    uploads: frozenset[str]
    malformed: int
    outcomes: Outcomes
    calls: Mapping[str, Sequence[Call]]
    kills: Sequence[Kill]
    ledger: Mapping[str, JobRecord]  # empty if it was off
    missing_points: int
    extra_points: int
    exit_code: int | None  # of the last process, which was asked to end


@dataclass
class Verdict:
    """Counts of what must be zero, and of what may not be."""

    lost: int = 0
    cancelled: int = 0  # requests that ended so
    duplicate_results: int = 0
    two_outcomes: int = 0
    duplicate_calls: int = 0  # spent calls beyond the first of each job
    duplicate_calls_outside_window: int = 0  # of these, those that no kill excuses
    ambiguous: int = 0  # jobs that the ledger says may have been billed twice
    ambiguous_unseen: int = 0  # of these, those whose claim had been made, and whose call the server never saw
    unrecorded: int = 0  # jobs that were called twice, or killed after their claim, and that are not called ambiguous
    paid_after_commit: int = 0  # jobs whose commit a kill followed, and that were called again
    wrong_tokens: int = 0
    malformed_lost: int = 0
    missing_points: int = 0
    extra_points: int = 0
    unclean_end: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> dict[str, int]:
        """What must not be: by name, if there is any."""
        allowed = {"cancelled", "duplicate_calls", "ambiguous", "ambiguous_unseen", "examples"}
        return {name: count for name, count in asdict(self).items() if name not in allowed and count}


def judge(seen: Evidence) -> Verdict:
    """Compare what was accepted with what came of it."""
    verdict = Verdict(missing_points=seen.missing_points, extra_points=seen.extra_points)
    verdict.unclean_end = int(seen.exit_code != 0)
    verdict.malformed_lost = max(seen.malformed - seen.outcomes.malformed, 0)
    outcomes = seen.outcomes
    verdict.cancelled = len(outcomes.cancelled)
    for job_id in sorted(seen.requests):
        results = outcomes.results.get(job_id, frozenset())
        ends = [bool(results), job_id in outcomes.buried, job_id in outcomes.cancelled]
        if not any(ends):
            verdict.lost += 1
            verdict.examples.append(f"lost: {job_id}")
        if len(results) > 1:
            verdict.duplicate_results += 1
            verdict.examples.append(f"two results: {job_id}")
        if sum(ends) > 1:
            verdict.two_outcomes += 1
            verdict.examples.append(f"of result, dead letter and cancellation: {ends}: {job_id}")
        _judge_calls(job_id, seen, verdict)
    _judge_kills(seen, verdict)
    lost_uploads = seen.uploads - outcomes.indexed - outcomes.buried
    verdict.lost += len(lost_uploads)
    verdict.examples += [f"lost: {job_id}" for job_id in sorted(lost_uploads)]
    verdict.examples = verdict.examples[:20]
    return verdict


def _judge_calls(job_id: str, seen: Evidence, verdict: Verdict) -> None:
    calls = sorted(seen.calls.get(job_id, ()), key=lambda call: call.number)
    spent = [call for call in calls if call.spent]
    record = seen.ledger.get(job_id)
    ambiguities = 0 if record is None else record.ambiguities
    excused = sum(call.open_at(seen.kills) for call in spent[:-1])
    verdict.duplicate_calls += max(len(spent) - 1, 0)
    outside = max(len(spent) - 1, 0) - excused
    verdict.duplicate_calls_outside_window += outside
    if outside:
        verdict.examples.append(f"called again without a kill in between: {calls}")
    verdict.ambiguous += ambiguities > 0
    verdict.ambiguous_unseen += ambiguities > 0 and not any(call.open_at(seen.kills) for call in calls)
    if seen.ledger and len(spent) - 1 > ambiguities:
        verdict.unrecorded += 1
        verdict.examples.append(f"called {len(spent)} times with {ambiguities} ambiguities: {job_id}")
    if record is not None and record.state == "done":
        _judge_tokens(job_id, seen, record, spent, verdict)


def _judge_kills(seen: Evidence, verdict: Verdict) -> None:
    """What must be true of the very jobs at whose side a process died."""
    for kill in seen.kills:
        if kill.job_id is None:
            continue
        if kill.point == "after-ledger":
            later = [call for call in seen.calls.get(kill.job_id, ()) if call.began_at > kill.at]
            verdict.paid_after_commit += bool(later)
            verdict.examples += [f"called after its commit: {later}"] if later else []
        elif seen.ledger:
            record = seen.ledger.get(kill.job_id)
            if record is None or record.ambiguities == 0:
                verdict.unrecorded += 1
                verdict.examples.append(f"killed {kill.point}, and not ambiguous: {kill.job_id}: {record}")


def _judge_tokens(job_id: str, seen: Evidence, record: JobRecord, spent: Sequence[Call], verdict: Verdict) -> None:
    """The ledger holds what the server reported for the very call that the result came from."""
    for value in seen.outcomes.results.get(job_id, ()):
        result = json.loads(value)
        number = Counter({call.number: 1 for call in spent if result["text"] == f"{job_id} call {call.number}"})
        if len(number) != 1:
            verdict.wrong_tokens += 1
            verdict.examples.append(f"result of no call: {job_id}: {result['text']!r}")
            continue
        (call,) = (call for call in spent if call.number in number)
        reported = call.fault not in {"no-usage", "wrong-usage"}
        if reported and (record.prompt_tokens, record.completion_tokens) != call.usage:
            verdict.wrong_tokens += 1
            verdict.examples.append(f"tokens: {job_id}: {record} against {call.usage}")
