"""What every ledger promises, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from connectors.ledger.port import Attempt, Claim, Conflict, Failure, GivenUp, Held, Known, Stored, Usage
from connectors.ledger.sql import SqlLedger
from schemas.errors import Fatal
from tests.connectors.ledger.conftest import Database

USAGE = Usage(11, 7)
FAILURE = Failure("poison", "Poison", "refused", 1)


def attempt(job_id: str = "j", *, request_hash: str = "h", origin: str = "t/0/1", redrives: int = 0) -> Attempt:
    return Attempt(job_id, "acme", request_hash, origin, uuid4().hex, redrives)


def claimed(outcome: object) -> Claim:
    assert isinstance(outcome, Claim), outcome
    return outcome


def on(database: Database, test: Callable[[SqlLedger], Awaitable[None]]) -> None:
    """Run a test against one process's ledger."""

    async def run() -> None:
        ledger = SqlLedger(database.store(), "owner-a")
        try:
            await test(ledger)
        finally:
            await ledger.close()

    asyncio.run(run())


def with_two(database: Database, test: Callable[[SqlLedger, SqlLedger], Awaitable[None]]) -> None:
    """Run a test against the ledgers of two processes on different nodes."""

    async def run() -> None:
        one, two = SqlLedger(database.store(), "owner-a"), SqlLedger(database.store(), "owner-b")
        try:
            await test(one, two)
        finally:
            await one.close()
            await two.close()

    asyncio.run(run())


def test_what_its_deadline_ended_is_reopened_by_another_message_and_not_by_a_replay(database: Database) -> None:
    async def test(ledger: SqlLedger) -> None:
        late = Failure("poison", "DeadlineExceeded", "the job's deadline has passed", 3)
        await ledger.give_up(claimed(await ledger.claim(attempt(origin="t/0/1"))), late)
        assert await ledger.claim(attempt(origin="t/0/1")) == GivenUp(late)
        claim = claimed(await ledger.claim(attempt(origin="t/0/2")))
        assert claim.failures == 0
        await ledger.commit(claim, b"r", USAGE)
        assert await ledger.claim(attempt(origin="t/0/1")) == Stored(b"r", published=False, origin="t/0/2")

    on(database, test)


def test_a_done_job_gives_its_stored_bytes_and_no_claim(database: Database) -> None:
    async def test(ledger: SqlLedger) -> None:
        claim = claimed(await ledger.claim(attempt(origin="t/0/5")))
        assert (claim.failures, claim.ambiguous) == (0, False)
        assert await ledger.commit(claim, b"\x00answer\xff", USAGE)
        again = await ledger.claim(attempt(origin="t/0/9"))
        assert again == Stored(b"\x00answer\xff", published=False, origin="t/0/5")
        await ledger.mark_published(["j", "unknown"])
        assert await ledger.claim(attempt()) == Stored(b"\x00answer\xff", published=True, origin="t/0/5")
        record = await ledger.find("j")
        assert record is not None
        assert (record.state, record.prompt_tokens, record.completion_tokens) == ("done", 11, 7)

    on(database, test)


def test_another_request_or_tenant_under_the_same_id_is_refused(database: Database) -> None:
    async def test(ledger: SqlLedger) -> None:
        claim = claimed(await ledger.claim(attempt()))
        assert await ledger.claim(attempt(request_hash="other")) == Conflict("running")
        await ledger.commit(claim, b"r", USAGE)
        assert await ledger.claim(attempt(request_hash="other")) == Conflict("done")
        stranger = Attempt("j", "rival", "h", "t/0/2", uuid4().hex)
        assert await ledger.claim(stranger) == Conflict("done")

    on(database, test)


def test_a_live_claim_is_held_against_everybody(database: Database) -> None:
    async def test(one: SqlLedger, two: SqlLedger) -> None:
        claimed(await one.claim(attempt()))
        assert await one.claim(attempt()) == Held()
        assert await two.claim(attempt()) == Held()

    with_two(database, test)


def test_a_known_failure_is_counted_and_leaves_nothing_ambiguous(database: Database) -> None:
    async def test(one: SqlLedger, two: SqlLedger) -> None:
        first = claimed(await one.claim(attempt()))
        assert await one.release(first, failed=True)
        second = claimed(await two.claim(attempt()))
        assert (second.failures, second.ambiguous) == (1, False)
        assert await two.release(second, failed=False)
        assert claimed(await one.claim(attempt())).failures == 1

    with_two(database, test)


def test_past_its_lease_a_claim_is_taken_over_once_and_the_zombie_writes_nothing(database: Database) -> None:
    async def test(zombie: SqlLedger, heir: SqlLedger) -> None:
        stale = claimed(await zombie.claim(attempt()))
        await heir.find("j")
        await asyncio.to_thread(database.advance, 31.0)
        taken = claimed(await heir.claim(attempt()))
        assert taken.ambiguous
        for write in (
            zombie.commit(stale, b"zombie's", USAGE),
            zombie.release(stale, failed=True),
            zombie.give_up(stale, FAILURE),
        ):
            assert not await write
        assert await heir.commit(taken, b"heir's", USAGE)
        assert not await zombie.commit(stale, b"zombie's", USAGE)
        assert await zombie.claim(attempt()) == Stored(b"heir's", published=False, origin="t/0/1")
        record = await heir.find("j")
        assert record is not None
        assert record.ambiguities == 1

    with_two(database, test)


def test_a_look_tells_a_job_with_its_result_and_claims_nothing(database: Database) -> None:
    async def run() -> None:
        ledger = SqlLedger(database.store(), "owner")
        assert await ledger.look("j") is None
        claim = claimed(await ledger.claim(attempt()))
        assert await ledger.look("j") == Known("running", claim_tenant, claim_hash, None)
        assert await ledger.commit(claim, b"answer", USAGE)
        assert await ledger.look("j") == Known("done", claim_tenant, claim_hash, b"answer")
        await ledger.close()

    asked = attempt()
    claim_tenant, claim_hash = asked.tenant, asked.request_hash
    asyncio.run(run())


def test_a_restart_of_the_same_owner_takes_over_at_once(database: Database) -> None:
    async def run() -> None:
        killed, restarted = SqlLedger(database.store(), "owner"), SqlLedger(database.store(), "owner")
        stale = claimed(await killed.claim(attempt()))
        assert claimed(await restarted.claim(attempt())).ambiguous
        assert not await killed.commit(stale, b"late", USAGE)
        await killed.close()
        await restarted.close()

    asyncio.run(run())


def test_a_superseded_process_is_told_at_its_next_heartbeat(database: Database) -> None:
    async def run() -> None:
        old = SqlLedger(database.store(), "owner", heartbeat_s=0.05)
        claimed(await old.claim(attempt()))
        new = SqlLedger(database.store(), "owner")
        await new.find("j")

        async def ask_until_told() -> None:
            while True:
                await old.find("j")
                await asyncio.sleep(0.01)

        with pytest.raises(Fatal, match="took over"):
            await asyncio.wait_for(ask_until_told(), 20)
        await old.close()
        await new.close()

    asyncio.run(run())


def test_heartbeats_keep_a_claim_past_its_first_lease(database: Database) -> None:
    async def run() -> None:
        one = SqlLedger(database.store(), "a", heartbeat_s=0.05)
        two = SqlLedger(database.store(), "b")
        claimed(await one.claim(attempt()))
        for _ in range(3):
            await asyncio.to_thread(database.advance, 20.0)
            async with asyncio.timeout(20):
                while (await asyncio.to_thread(database.lease_left_s, one.claimant)) < 25.0:
                    await asyncio.sleep(0.02)
        assert await two.claim(attempt()) == Held()
        await one.close()
        await two.close()

    asyncio.run(run())


def test_given_up_stays_given_up_until_it_is_redriven_and_each_redrive_counts_once(database: Database) -> None:
    async def test(ledger: SqlLedger) -> None:
        assert await ledger.give_up(claimed(await ledger.claim(attempt())), FAILURE)
        assert await ledger.claim(attempt()) == GivenUp(FAILURE)
        redriven = claimed(await ledger.claim(attempt(redrives=1)))
        assert (redriven.failures, redriven.ambiguous) == (0, False)
        assert await ledger.give_up(redriven, FAILURE)
        assert await ledger.claim(attempt(redrives=1)) == GivenUp(FAILURE)
        assert await ledger.commit(claimed(await ledger.claim(attempt(redrives=2))), b"r", USAGE)

    on(database, test)


def test_every_operation_may_be_repeated_after_a_lost_reply(database: Database) -> None:
    async def test(ledger: SqlLedger) -> None:
        once = attempt()
        claim = claimed(await ledger.claim(once))
        assert await ledger.claim(once) == claim
        assert await ledger.release(claim, failed=True)
        assert await ledger.release(claim, failed=True)
        second = claimed(await ledger.claim(attempt()))
        assert second.failures == 1
        assert await ledger.commit(second, b"r", USAGE)
        assert await ledger.commit(second, b"r", USAGE)
        given_up = claimed(await ledger.claim(attempt("k")))
        assert await ledger.give_up(given_up, FAILURE)
        assert await ledger.give_up(given_up, FAILURE)

    on(database, test)


def test_a_repeated_takeover_is_still_ambiguous(database: Database) -> None:
    async def test(one: SqlLedger, two: SqlLedger) -> None:
        claimed(await one.claim(attempt()))
        await asyncio.to_thread(database.advance, 31.0)
        again = attempt()
        assert claimed(await two.claim(again)).ambiguous
        assert claimed(await two.claim(again)).ambiguous

    with_two(database, test)


def test_of_many_claims_at_once_by_many_processes_exactly_one_wins_each_job(database: Database) -> None:
    async def run() -> None:
        ledgers = [SqlLedger(database.store(), f"owner-{n}") for n in range(4)]
        jobs = [f"job-{n}" for n in range(50)]
        outcomes = await asyncio.gather(*(ledger.claim(attempt(job)) for job in jobs for ledger in ledgers))
        won = [outcome.job_id for outcome in outcomes if isinstance(outcome, Claim)]
        assert sorted(won) == sorted(jobs)
        for ledger in ledgers:
            await ledger.close()

    asyncio.run(run())


def test_ended_jobs_expire_and_unfinished_ones_never_do(database: Database) -> None:
    async def run() -> None:
        ledger = SqlLedger(database.store(), "a", heartbeat_s=0.05, retention_s=3600.0)
        await ledger.commit(claimed(await ledger.claim(attempt("done"))), b"r", USAGE)
        await ledger.release(claimed(await ledger.claim(attempt("waiting"))), failed=True)
        claimed(await ledger.claim(attempt("running")))
        await asyncio.to_thread(database.advance, 3500.0)
        await ledger.commit(claimed(await ledger.claim(attempt("young"))), b"r", USAGE)
        await asyncio.to_thread(database.advance, 200.0)
        async with asyncio.timeout(20):
            while await ledger.find("done") is not None:
                await asyncio.sleep(0.02)
        for job in ("waiting", "running", "young"):
            assert await ledger.find(job) is not None, job
        await ledger.close()

    asyncio.run(run())
