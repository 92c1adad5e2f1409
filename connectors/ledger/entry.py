"""A job's entry in the ledger and how it may change: the rules, without any database."""

from dataclasses import dataclass, replace

from connectors.ledger.port import (
    Attempt,
    Claim,
    ClaimOutcome,
    Conflict,
    Failure,
    GivenUp,
    Held,
    JobRecord,
    Known,
    State,
    Stored,
    Usage,
)


@dataclass(frozen=True)
class Entry:
    """One row."""

    job_id: str
    tenant: str
    request_hash: str
    origin: str
    state: State
    token: str  # of the last claim
    claimant: str  # the process run that made it
    failures: int = 0
    redrives: int = 0
    ambiguities: int = 0
    ambiguous: bool = False  # of the last claim
    result: bytes | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    published: bool = False
    failure: Failure | None = None

    def record(self) -> JobRecord:
        """What others may know."""
        return JobRecord(
            self.job_id,
            self.tenant,
            self.state,
            self.failures,
            self.redrives,
            self.ambiguities,
            self.published,
            self.prompt_tokens,
            self.completion_tokens,
        )

    def known(self) -> Known:
        """What a repeat of the job needs."""
        return Known(self.state, self.tenant, self.request_hash, self.result)


def claim(  # noqa: PLR0911  # one return per rule
    entry: Entry | None, attempt: Attempt, claimant: str, *, live: bool
) -> tuple[Entry | None, ClaimOutcome]:
    """The entry to write, if any, and the answer. `live`: the process run that holds the entry is alive."""
    if entry is None:
        new = Entry(
            attempt.job_id,
            attempt.tenant,
            attempt.request_hash,
            attempt.origin,
            "running",
            attempt.token,
            claimant,
            redrives=attempt.redrives,
        )
        return new, Claim(attempt.job_id, attempt.token)
    if (entry.request_hash, entry.tenant) != (attempt.request_hash, attempt.tenant):
        return None, Conflict(entry.state)
    late = entry.failure is not None and entry.failure.late and attempt.origin != entry.origin
    anew = attempt.redrives > entry.redrives or late
    taken = replace(
        entry,
        state="running",
        origin=attempt.origin,
        token=attempt.token,
        claimant=claimant,
        redrives=max(entry.redrives, attempt.redrives),
        failures=0 if anew else entry.failures,
        ambiguous=False,
        failure=None,
    )
    match entry.state:
        case "done":
            return None, Stored(entry.result or b"", entry.published, entry.origin)
        case "running" if entry.token == attempt.token:  # the reply to this very claim was lost
            return None, Claim(entry.job_id, entry.token, entry.failures, entry.ambiguous)
        case "running" if live or entry.claimant == claimant:
            return None, Held()
        case "running":
            taken = replace(taken, ambiguities=entry.ambiguities + 1, ambiguous=True)
            return taken, Claim(entry.job_id, attempt.token, taken.failures, ambiguous=True)
        case "waiting":
            return taken, Claim(entry.job_id, attempt.token, taken.failures)
        case "given_up" if anew:
            return taken, Claim(entry.job_id, attempt.token)
        case "given_up":
            return None, GivenUp(entry.failure or Failure("retryable", "Unknown", "no reason was recorded", 1))


def _held(entry: Entry | None, held: Claim) -> Entry | None:
    return entry if entry is not None and entry.state == "running" and entry.token == held.token else None


def _repeated(entry: Entry | None, held: Claim, state: State) -> bool:
    """The change was made already, and its reply lost."""
    return entry is not None and entry.state == state and entry.token == held.token


def commit(entry: Entry | None, held: Claim, result: bytes, usage: Usage) -> tuple[Entry | None, bool]:
    """Store a result under a claim that still holds."""
    mine = _held(entry, held)
    if mine is None:
        return None, _repeated(entry, held, "done")
    done = replace(
        mine,
        state="done",
        result=result,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )
    return done, True


def release(entry: Entry | None, held: Claim, *, failed: bool) -> tuple[Entry | None, bool]:
    """Let the claim go: its call is known to be over."""
    mine = _held(entry, held)
    if mine is None:
        return None, _repeated(entry, held, "waiting")
    return replace(mine, state="waiting", failures=mine.failures + failed), True


def give_up(entry: Entry | None, held: Claim, failure: Failure) -> tuple[Entry | None, bool]:
    """End the job without a result."""
    mine = _held(entry, held)
    if mine is None:
        return None, _repeated(entry, held, "given_up")
    return replace(mine, state="given_up", failures=failure.attempts, failure=failure), True
