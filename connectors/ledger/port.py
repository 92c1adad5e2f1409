"""The port to the ledger: who may make a paid call for a job, and what the call answered.

A job's life here: nobody's -> running (claimed; a call may be in flight) -> done, or waiting (the call is known to have
failed, and may be made again) or given up (until somebody redrives it, or submits it again with a later deadline if
the deadline was what ended it). A claim is known by its token; every change
compares the token first, so a process that was stalled past its lease and wakes up changes nothing.

Every operation may be repeated with the same token: after a lost reply the caller asks again, and gets the same answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["running", "waiting", "done", "given_up"]


@dataclass(frozen=True)
class Attempt:
    """The wish to make one paid call."""

    job_id: str
    tenant: str
    request_hash: str  # of everything that decides the answer: another one under the same job_id is refused
    origin: str  # the message that asks, as topic/partition/offset: tells its replay from a duplicate
    token: str  # new for every attempt
    redrives: int = 0  # how often the message was redriven: each time buys a job that was given up new attempts


@dataclass(frozen=True)
class Claim:
    """The right, and the duty, to make the call: then `commit`, `release` or `give_up`."""

    job_id: str
    token: str
    failures: int = 0  # attempts known to have failed, since the last redrive
    ambiguous: bool = False  # the last claim was left by a process that died: the provider may have billed its call


@dataclass(frozen=True)
class Usage:
    """Tokens of a call."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Stored:
    """The job is done: no call."""

    result: bytes
    published: bool  # the result has been acknowledged by Kafka
    origin: str  # of the message that the call was made for


@dataclass(frozen=True)
class Failure:
    """Why a job was given up."""

    error_class: Literal["retryable", "poison"]
    error_type: str
    message: str
    attempts: int

    @property
    def late(self) -> bool:
        """Only its deadline ended it. Another message for the job that asks for a claim has a later one: it may."""
        return self.error_type == "DeadlineExceeded"


@dataclass(frozen=True)
class GivenUp:
    """The job ended as a dead letter, and this message is neither a redrive nor one with a later deadline: no call."""

    failure: Failure


@dataclass(frozen=True)
class Held:
    """A live process holds the claim: ask again later."""


@dataclass(frozen=True)
class Conflict:
    """The job_id belongs to another request, which is in `state`."""

    state: State


ClaimOutcome = Claim | Stored | GivenUp | Held | Conflict


@dataclass(frozen=True)
class JobRecord:
    """What the ledger knows about a job, for people and checks."""

    job_id: str
    tenant: str
    state: State
    failures: int
    redrives: int
    ambiguities: int  # how often a claim was taken over from a process that died
    published: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Known:
    """What the ledger holds of a job, for whoever would repeat it."""

    state: State
    tenant: str
    request_hash: str
    result: bytes | None


class Ledger(Protocol):
    """Durable before it answers.

    Raises Unavailable while the database is out of reach, and Fatal where only a person can help.

    Times are the database's: the clocks of those who call are never compared.
    """

    async def claim(self, attempt: Attempt) -> ClaimOutcome:
        """Take the job if it is free, if its last call is known to have failed, or if its claimant is dead."""
        ...

    async def commit(self, claim: Claim, result: bytes, usage: Usage) -> bool:
        """Store the result; False if the claim was taken over meanwhile, and then nothing is stored."""
        ...

    async def release(self, claim: Claim, *, failed: bool) -> bool:
        """No call is in flight any more; `failed` counts as one of the job's attempts. False if taken over."""
        ...

    async def give_up(self, claim: Claim, failure: Failure) -> bool:
        """No further call until somebody redrives the job, or the like. False if taken over."""
        ...

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """Kafka has acknowledged the results of these jobs."""
        ...

    async def find(self, job_id: str) -> JobRecord | None:
        """What is known about a job."""
        ...

    async def look(self, job_id: str) -> Known | None:
        """The same for a repeat of the job, with its result; claims nothing."""
        ...

    async def close(self) -> None:
        """Finish what was asked for and leave."""
        ...
