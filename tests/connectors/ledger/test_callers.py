"""Callers that are cancelled, that come after the end, or in any order; and processes whose lease is over."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any
from uuid import uuid4

import pytest

from connectors.ledger.port import Attempt, Claim, Held, Stored, Usage
from connectors.ledger.sql import Apply, SqlLedger, Store
from schemas.errors import Fatal, Unavailable
from tests.connectors.ledger.conftest import Database

USAGE = Usage(1, 2)


def attempt(job_id: str = "j") -> Attempt:
    return Attempt(job_id, "acme", "h", "t/0/1", uuid4().hex)


async def claimed(ledger: SqlLedger, job_id: str = "j") -> Claim:
    outcome = await ledger.claim(attempt(job_id))
    assert isinstance(outcome, Claim), outcome
    return outcome


def quietly(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end within a minute; nothing may be left that asyncio complains about."""
    complaints: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await asyncio.wait_for(work, 60)
        gc.collect()

    asyncio.run(run())
    gc.collect()
    assert complaints == []


class Gated(Store):
    """Stops transactions before the database until they are let through."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.reached = asyncio.Event()

    async def transact(self, job_ids: Sequence[str], apply: Apply) -> None:
        self.reached.set()
        await self.open.wait()
        await self._store.transact(job_ids, apply)

    async def register(self, owner: str, claimant: str, lease_s: float) -> None:
        await self._store.register(owner, claimant, lease_s)

    async def renew(self, claimant: str, lease_s: float) -> bool:
        return await self._store.renew(claimant, lease_s)

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        await self._store.mark_published(job_ids)

    async def expire(self, older_than_s: float, limit: int) -> int:
        return await self._store.expire(older_than_s, limit)

    async def close(self) -> None:
        await self._store.close()


def test_close_answers_the_operations_that_are_under_way_and_those_that_wait(database: Database) -> None:
    async def run() -> None:
        gate = Gated(database.store())
        ledger = SqlLedger(gate, "a")
        gate.open.clear()
        under_way = asyncio.create_task(ledger.find("j"))
        await gate.reached.wait()
        waiting = asyncio.create_task(ledger.find("k"))
        await asyncio.sleep(0)
        await asyncio.wait_for(ledger.close(), 10)
        for task in (under_way, waiting):
            with pytest.raises(Unavailable, match="closed"):
                await asyncio.wait_for(task, 5)

    quietly(run())


def test_what_is_asked_of_a_closed_ledger_is_refused_at_once(database: Database) -> None:
    async def run() -> None:
        ledger = SqlLedger(database.store(), "a")
        claim = await claimed(ledger)
        await ledger.close()
        late: list[Awaitable[object]] = [
            ledger.claim(attempt()),
            ledger.commit(claim, b"r", USAGE),
            ledger.mark_published(["j"]),
            ledger.find("j"),
        ]
        for operation in late:
            with pytest.raises(Unavailable, match="closed"):
                await asyncio.wait_for(operation, 5)
        await asyncio.wait_for(ledger.close(), 5)

    quietly(run())


def test_a_ledger_that_was_never_used_closes(database: Database) -> None:
    quietly(SqlLedger(database.store(), "a").close())


def test_callers_cancelled_at_any_moment_harm_nobody_else(database: Database) -> None:
    """Of a hundred operations half are cancelled, at every stage between their beginning and their end."""

    async def run() -> None:
        ledger = SqlLedger(database.store(), "a")
        claims = [await claimed(ledger, f"job-{n}") for n in range(20)]
        for yields in range(25):
            tasks = [
                asyncio.create_task(ledger.commit(claims[yields % 20], b"r", USAGE)),
                asyncio.create_task(ledger.mark_published([claims[yields % 20].job_id])),
            ]
            for _ in range(yields):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await asyncio.wait_for(ledger.find("nobody's"), 20) is None
        for claim in claims:
            assert await ledger.commit(claim, b"r", USAGE)
            assert await ledger.claim(attempt(claim.job_id)) in (
                Stored(b"r", published=False, origin="t/0/1"),
                Stored(b"r", published=True, origin="t/0/1"),
            )
        await ledger.close()

    quietly(run())


def test_a_claim_cancelled_before_it_was_written_is_never_made(database: Database) -> None:
    async def run() -> None:
        gate = Gated(database.store())
        ledger = SqlLedger(gate, "a")
        gate.open.clear()
        first = asyncio.create_task(ledger.find("j"))
        await gate.reached.wait()
        unwanted = asyncio.create_task(ledger.claim(attempt("unwanted")))
        await asyncio.sleep(0)
        unwanted.cancel()
        gate.open.set()
        await first
        assert await ledger.find("unwanted") is None
        await ledger.close()

    quietly(run())


def test_an_operation_that_the_database_refuses_spoils_no_other(database: Database) -> None:
    """A provider's nonsense in one job's usage is that job's affair."""

    async def run() -> None:
        ledger = SqlLedger(database.store(), "a")
        claims = [await claimed(ledger, f"job-{n}") for n in range(5)]
        usages = [USAGE, USAGE, Usage(10**30, 1), USAGE, USAGE]
        work = [ledger.commit(claim, b"r", usage) for claim, usage in zip(claims, usages, strict=True)]
        done = await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), 20)
        assert [done[n] for n in (0, 1, 3, 4)] == [True] * 4
        assert not isinstance(done[2], Unavailable)  # which would be repeated for ever
        await ledger.close()

    quietly(run())


def test_processes_that_claim_the_same_new_jobs_in_opposite_orders_never_wait_in_a_circle(database: Database) -> None:
    async def run() -> None:
        ledgers = [SqlLedger(database.store(), f"owner-{n}") for n in range(3)]
        for ledger in ledgers:
            await ledger.find("nobody's")
        for wave in range(8):
            jobs = [f"{wave}-{n}" for n in range(300)]
            work = [
                ledger.claim(attempt(job))
                for ledger, order in zip(ledgers, (jobs, jobs[::-1], jobs), strict=True)
                for job in order
            ]
            outcomes = await asyncio.gather(*work)
            assert sum(isinstance(outcome, Claim) for outcome in outcomes) == len(jobs)
        for ledger in ledgers:
            await ledger.close()

    quietly(run())


def test_publishing_and_claiming_the_same_jobs_in_opposite_orders_never_wait_in_a_circle(database: Database) -> None:
    async def run() -> None:
        one, two = SqlLedger(database.store(), "a"), SqlLedger(database.store(), "b")
        jobs = [f"job-{n:03}" for n in range(400)]
        for job in reversed(jobs):  # the order of the rows is not that of the ids
            await one.commit(await claimed(one, job), b"r", USAGE)
        for _ in range(15):
            claims = [two.claim(attempt(job)) for job in jobs]
            await asyncio.gather(one.mark_published(jobs[::-1]), *claims)
        await one.close()
        await two.close()

    quietly(run())


def back_from_a_stall(
    database: Database, test: Callable[[SqlLedger, SqlLedger], Coroutine[Any, Any, None]]
) -> Coroutine[Any, Any, None]:
    """`test` with a process whose lease ended while it was stalled, before its next heartbeat, and another one."""

    async def run() -> None:
        stalled, other = SqlLedger(database.store(), "a", heartbeat_s=1e6), SqlLedger(database.store(), "b")
        await stalled.find("j")
        await asyncio.to_thread(database.advance, 31.0)
        await other.find("j")
        await test(stalled, other)
        await stalled.close()
        await other.close()

    return run()


def test_a_process_back_from_a_stall_holds_what_it_claims_from_then_on(database: Database) -> None:
    """Or two live processes would pay for one job, and the second would take the first for dead."""

    async def test(stalled: SqlLedger, other: SqlLedger) -> None:
        mine = await claimed(stalled)
        assert await other.claim(attempt()) == Held()
        assert await stalled.commit(mine, b"r", USAGE)

    quietly(back_from_a_stall(database, test))


def test_many_claims_after_a_stall_renew_the_lease_once(database: Database) -> None:
    async def test(stalled: SqlLedger, other: SqlLedger) -> None:
        renewals = 0
        renew = stalled.store.renew

        async def counted(claimant: str, lease_s: float) -> bool:
            nonlocal renewals
            renewals += 1
            return await renew(claimant, lease_s)

        stalled.store.renew = counted  # type: ignore[method-assign]
        jobs = [f"job-{n}" for n in range(100)]
        claims = await asyncio.gather(*(stalled.claim(attempt(job)) for job in jobs))
        assert {type(claim) for claim in claims} == {Claim}
        assert renewals == 1
        assert await other.claim(attempt("job-99")) == Held()

    quietly(back_from_a_stall(database, test))


def test_a_replaced_process_is_refused_its_next_claim_not_only_told_at_its_next_heartbeat(database: Database) -> None:
    async def run() -> None:
        old, new = SqlLedger(database.store(), "a", heartbeat_s=1e6), SqlLedger(database.store(), "a")
        await old.find("j")
        assert await new.find("j") is None
        with pytest.raises(Fatal, match="took over"):
            await old.claim(attempt())
        assert isinstance(await new.claim(attempt()), Claim)
        await old.close()
        await new.close()

    quietly(run())
