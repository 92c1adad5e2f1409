"""Any order of claims, crashes, stalls, lost replies and passing time: one valid claim per job, and one result.

Time is virtual: it passes by shifting the times that the database holds.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from connectors.ledger.port import Attempt, Claim, Conflict, Failure, GivenUp, Held, Stored, Usage
from connectors.ledger.sql import LEASE_S, SqlLedger
from schemas.errors import Fatal
from tests.connectors.ledger.conftest import Database, postgres_database, sqlite_database
from tests.postgres_server import PostgresServer

T = TypeVar("T")

OWNERS = ("node-a", "node-b", "node-c")
JOBS = ("j", "k")
HASHES = ("asks this", "asks that")
FAILURE = Failure("retryable", "Retryable", "503", 5)


@dataclass
class Run:
    """One run of one process, as the model sees it."""

    ledger: SqlLedger
    lease_until: float
    replaced: bool = False  # a later run of its owner has registered
    told: bool = False  # and it has heard of that


@dataclass
class Job:
    """What must be true of a job."""

    asks: str
    state: str = "running"
    token: str = ""
    run: Run | None = None
    failures: int = 0
    redrives: int = 0
    ambiguities: int = 0
    ambiguous: bool = False
    result: bytes | None = None
    results: set[bytes] = field(default_factory=set)


class LedgerMachine(RuleBasedStateMachine):
    """Processes on three nodes, some of them zombies, and two jobs."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.database.clear()
        self.loop = asyncio.Runner()
        self.now = 0.0
        self.runs: dict[str, list[Run]] = {}
        self.jobs: dict[str, Job] = {}
        self.claims: list[tuple[Claim, Run]] = []
        self.attempts: list[tuple[Attempt, Run]] = []

    def do(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await asyncio.wait_for(work, 30)

        return self.loop.run(run())

    def teardown(self) -> None:
        for runs in self.runs.values():
            for each in runs:
                self.do(each.ledger.close())
        self.loop.close()

    @rule(owner=st.sampled_from(OWNERS))
    def start(self, owner: str) -> None:
        """A new run; a former one of the same owner is a zombie from now on, if it was not killed."""
        ledger = SqlLedger(self.database.store(), owner, heartbeat_s=1e6)
        self.do(ledger.find("nobody's"))  # registers
        for former in self.runs.get(owner, []):
            former.replaced = True
        self.runs.setdefault(owner, []).append(Run(ledger, self.now + LEASE_S))

    @rule(seconds=st.sampled_from([1.0, 10.0, 29.0, 31.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.database.advance(seconds)
        self.now += seconds

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        run = self._some_run(data)
        renewed = self.do(run.ledger.store.renew(run.ledger.claimant, LEASE_S))
        assert renewed is not run.replaced
        if renewed:
            run.lease_until = self.now + LEASE_S

    def _some_run(self, data: st.DataObject) -> Run:
        return data.draw(st.sampled_from([run for runs in self.runs.values() for run in runs]))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), job_id=st.sampled_from(JOBS), asks=st.sampled_from(HASHES), redrives=st.integers(0, 2))
    def claim(self, data: st.DataObject, job_id: str, asks: str, redrives: int) -> None:
        run = self._some_run(data)
        attempt = Attempt(job_id, "acme", asks, "t/0/1", uuid4().hex, redrives)
        if run.replaced:
            self._is_refused(run, run.ledger.claim(attempt))
            return
        if not self._alive(run):
            run.lease_until = self.now + LEASE_S  # or others would take its new claim for a dead process's
        self._claim(attempt, run)
        self.attempts.append((attempt, run))

    def _is_refused(self, run: Run, work: Awaitable[object]) -> None:
        with pytest.raises(Fatal, match="took over"):
            self.do(work)
        run.told = True

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def claim_again_since_the_reply_was_lost(self, data: st.DataObject) -> None:
        attempt, run = data.draw(st.sampled_from(self.attempts[-3:]))
        job = self.jobs[attempt.job_id]
        if job.token != attempt.token or job.state != "running":
            return
        if run.replaced:
            self._is_refused(run, run.ledger.claim(attempt))
            return
        if not self._alive(run):
            run.lease_until = self.now + LEASE_S
        outcome = self.do(run.ledger.claim(attempt))
        assert outcome == Claim(attempt.job_id, attempt.token, job.failures, job.ambiguous)

    def _claim(self, attempt: Attempt, run: Run) -> None:
        outcome = self.do(run.ledger.claim(attempt))
        job = self.jobs.get(attempt.job_id)
        if job is None:
            self.jobs[attempt.job_id] = Job(
                attempt.request_hash, token=attempt.token, run=run, redrives=attempt.redrives
            )
            assert outcome == Claim(attempt.job_id, attempt.token)
            self.claims.append((outcome, run))
            return
        if job.asks != attempt.request_hash:
            assert outcome == Conflict(job.state)  # type: ignore[arg-type]  # one of its states
            return
        if job.state == "done":
            assert outcome == Stored(job.result or b"", published=False, origin="t/0/1")
            return
        redriven = attempt.redrives > job.redrives
        if job.state == "given_up" and not redriven:
            assert outcome == GivenUp(FAILURE)
            return
        if job.state == "running" and (job.run is run or self._alive(job.run)):
            assert outcome == Held()
            return
        job.ambiguous = job.state == "running"
        job.ambiguities += job.ambiguous
        job.failures = 0 if redriven else job.failures
        job.redrives = max(job.redrives, attempt.redrives)
        job.state, job.token, job.run = "running", attempt.token, run
        assert outcome == Claim(attempt.job_id, attempt.token, job.failures, job.ambiguous)
        self.claims.append((outcome, run))

    def _alive(self, run: Run | None) -> bool:
        return run is not None and not run.replaced and run.lease_until > self.now

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), ends=st.sampled_from(["commit", "release", "release failed", "give up"]))
    def end(self, data: st.DataObject, ends: str) -> None:
        """With any claim that was ever made, by whoever made it, again or too late."""
        claim, run = data.draw(st.sampled_from(self.claims))
        if run.told:
            self._is_refused(run, run.ledger.commit(claim, b"late", Usage(1, 2)))
            return
        job = self.jobs[claim.job_id]
        valid = job.state == "running" and job.token == claim.token
        repeated = job.token == claim.token
        match ends:
            case "commit":
                result = uuid4().bytes
                done = self.do(run.ledger.commit(claim, result, Usage(1, 2)))
                assert done is (valid or (repeated and job.state == "done"))
                if valid:
                    job.state, job.result = "done", result
                    job.results.add(result)
            case "give up":
                done = self.do(run.ledger.give_up(claim, FAILURE))
                assert done is (valid or (repeated and job.state == "given_up"))
                if valid:
                    job.state, job.failures = "given_up", FAILURE.attempts
            case _:
                failed = ends == "release failed"
                done = self.do(run.ledger.release(claim, failed=failed))
                assert done is (valid or (repeated and job.state == "waiting"))
                if valid:
                    job.state, job.failures = "waiting", job.failures + failed

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        live = [runs[-1] for runs in self.runs.values()]
        if not live:
            return
        for job_id, job in self.jobs.items():
            record = self.do(live[0].ledger.find(job_id))
            assert record is not None
            assert (record.state, record.failures, record.ambiguities) == (job.state, job.failures, job.ambiguities)
            assert len(job.results) <= 1


def machine_on(database_of: Database) -> type[LedgerMachine]:
    class OnDatabase(LedgerMachine):
        database = database_of

    return OnDatabase


def explore(database: Database, *, examples: int) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    some = settings(max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=quiet)
    run_state_machine_as_test(machine_on(database), settings=some)


def test_no_order_of_events_breaks_the_ledger_on_sqlite() -> None:
    with TemporaryDirectory() as directory:
        explore(sqlite_database(Path(directory) / "ledger.sqlite"), examples=60)


def test_no_order_of_events_breaks_the_ledger_on_postgresql(postgres: PostgresServer) -> None:
    explore(postgres_database(postgres), examples=12)
