"""The ledger on an SQL database: one writer that commits many operations at once.

Guarantee: an operation is answered after the transaction that holds it is durable. Operations that wait while a
transaction commits share the next one (group commit), so that the price of durability is paid per batch.

A process run is a claimant with a lease in a table of its own, renewed by one row per heartbeat however many jobs it
holds. On one node a restart replaces its owner's former claimant at once, so its jobs need not wait for the lease.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol, TypeVar
from uuid import uuid4

import structlog

from connectors.ledger import entry as rules
from connectors.ledger.entry import Entry
from connectors.ledger.port import Attempt, Claim, ClaimOutcome, Failure, JobRecord, Known, Ledger, Usage
from schemas.errors import Fatal, HeadraceError, Unavailable

T = TypeVar("T")

log = structlog.get_logger()

LEASE_S = 30.0  # how long after its last sign of life a process is taken for dead by those on other nodes
HEARTBEAT_S = 10.0  # two may be lost
RETENTION_S = 7 * 24 * 3600.0  # as long as a request stays on its topic, and can come again
BATCH = 500  # operations per transaction
EXPIRE_BATCH = 1000  # rows deleted per heartbeat: 100 a second, and never a long transaction

Apply = Callable[[dict[str, Entry], Collection[str]], list[Entry]]
"""Entries by job_id, and the live claimants; the entries to write."""

COLUMNS = (
    "job_id",
    "tenant",
    "request_hash",
    "origin",
    "state",
    "token",
    "claimant",
    "failures",
    "redrives",
    "ambiguities",
    "ambiguous",
    "result",
    "prompt_tokens",
    "completion_tokens",
    "published",
    "failure",
)


def row_of(entry: Entry) -> tuple[object, ...]:
    """The values of an entry, in the order of COLUMNS."""
    failure = None if entry.failure is None else json.dumps(asdict(entry.failure))
    # Flags are integers in both databases.
    return (
        *(entry.job_id, entry.tenant, entry.request_hash, entry.origin, entry.state, entry.token, entry.claimant),
        *(entry.failures, entry.redrives, entry.ambiguities, int(entry.ambiguous), entry.result),
        *(entry.prompt_tokens, entry.completion_tokens, int(entry.published), failure),
    )


def entry_of(row: Sequence[object]) -> Entry:
    """The entry of a row that has the values of COLUMNS."""
    fields = dict(zip(COLUMNS, row, strict=True))
    failure = fields["failure"]
    return Entry(
        **{  # type: ignore[arg-type]  # the table's columns have the types of the fields
            **fields,
            "ambiguous": bool(fields["ambiguous"]),
            "published": bool(fields["published"]),
            "failure": Failure(**json.loads(failure)) if isinstance(failure, str) else None,
        }
    )


class Store(Protocol):
    """One database, used by one caller at a time. Raises Unavailable, after which it may be used again, or Fatal."""

    async def register(self, owner: str, claimant: str, lease_s: float) -> None:
        """Make `claimant` the only one of `owner`, alive for `lease_s` seconds; creates what is missing."""
        ...

    async def renew(self, claimant: str, lease_s: float) -> bool:
        """Prolong the lease; False if the claimant has been replaced."""
        ...

    async def transact(self, job_ids: Sequence[str], apply: Apply) -> None:
        """Lock and read the entries, write what `apply` returns, and commit; durable on return."""
        ...

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """Of entries that are done."""
        ...

    async def expire(self, older_than_s: float, limit: int) -> int:
        """Delete entries that ended so long ago; how many."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class _LeaseOver(Exception):
    """This process was stalled for longer than its lease: nobody would respect what it claims."""


class _Operation:
    """One change of one entry, and who waits for it."""

    def __init__(
        self,
        job_id: str,
        change: Callable[[Entry | None, Collection[str]], Entry | None],
        done: asyncio.Future[None],
        *,
        claims: bool,
    ) -> None:
        self.job_id = job_id
        self.change = change
        self.done = done
        self.claims = claims


class SqlLedger(Ledger):
    """A ledger on `store` for one run of one process. Use it from one event loop; begins at the first operation.

    owner: stable and exclusive, so that a new run of it proves the former one dead: the identity of a locked directory.
    """

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        lease_s: float = LEASE_S,
        heartbeat_s: float = HEARTBEAT_S,
        retention_s: float = RETENTION_S,
    ) -> None:
        self.store = store
        self._owner = owner
        self.claimant = uuid4().hex
        """This run."""
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._retention_s = retention_s
        self._waiting: list[_Operation] = []
        self._arrived = asyncio.Event()
        self._store_lock = asyncio.Lock()
        self._registered = False
        self._superseded: Fatal | None = None
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def claim(self, attempt: Attempt) -> ClaimOutcome:
        """See the port."""
        return await self._change(
            attempt.job_id,
            lambda entry, live: rules.claim(
                entry, attempt, self.claimant, live=entry is not None and entry.claimant in live
            ),
            claims=True,
        )

    async def commit(self, claim: Claim, result: bytes, usage: Usage) -> bool:
        """See the port."""
        return await self._change(claim.job_id, lambda entry, _: rules.commit(entry, claim, result, usage))

    async def release(self, claim: Claim, *, failed: bool) -> bool:
        """See the port."""
        return await self._change(claim.job_id, lambda entry, _: rules.release(entry, claim, failed=failed))

    async def give_up(self, claim: Claim, failure: Failure) -> bool:
        """See the port."""
        return await self._change(claim.job_id, lambda entry, _: rules.give_up(entry, claim, failure))

    async def find(self, job_id: str) -> JobRecord | None:
        """See the port."""
        return await self._change(job_id, lambda entry, _: (None, None if entry is None else entry.record()))

    async def look(self, job_id: str) -> Known | None:
        """See the port."""
        return await self._change(job_id, lambda entry, _: (None, None if entry is None else entry.known()))

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """See the port."""
        async with self._store_lock:
            await self._begin()
            await self.store.mark_published(job_ids)

    async def _change(
        self,
        job_id: str,
        rule: Callable[[Entry | None, Collection[str]], tuple[Entry | None, T]],
        *,
        claims: bool = False,
    ) -> T:
        if self._closed:
            raise Unavailable("the ledger is closed")
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._stay_alive())]
        answers: list[T] = []

        def change(entry: Entry | None, live: Collection[str]) -> Entry | None:
            new, answer = rule(entry, live)
            answers[:] = [answer]
            return new

        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Operation(job_id, change, done, claims=claims))
        self._arrived.set()
        await done
        return answers[0]

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            if not self._waiting:
                self._arrived.clear()
            if batch:
                await self._commit(batch)

    async def _commit(self, batch: list[_Operation]) -> None:
        try:
            async with self._store_lock:
                await self._begin()
                await self._transact(batch)
        except HeadraceError as error:
            self._fail(batch, error)
        except asyncio.CancelledError:
            self._fail(batch, Unavailable("the ledger is closed"))
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, those who wait must hear of it
            if len(batch) == 1:
                self._fail(batch, error)
            for operation in batch if len(batch) > 1 else ():  # one of them is at fault, and the others are not
                await self._commit([operation])
        else:
            for operation in batch:
                if not operation.done.done():  # whoever waited may have been cancelled
                    operation.done.set_result(None)

    def _fail(self, batch: Sequence[_Operation], error: Exception) -> None:
        for operation in batch:
            if not operation.done.done():
                operation.done.set_exception(error)

    async def _transact(self, batch: Sequence[_Operation]) -> None:
        wanted = [operation for operation in batch if not operation.done.done()]

        claiming = any(operation.claims for operation in wanted)

        def apply(entries: dict[str, Entry], live: Collection[str]) -> list[Entry]:
            if claiming and self.claimant not in live:
                raise _LeaseOver
            changed: dict[str, Entry] = {}
            for operation in wanted:
                new = operation.change(changed.get(operation.job_id, entries.get(operation.job_id)), live)
                if new is not None:
                    changed[operation.job_id] = new
            return list(changed.values())

        job_ids = sorted({operation.job_id for operation in wanted})
        while True:
            try:
                return await self.store.transact(job_ids, apply)
            except _LeaseOver:
                await self._renew()

    async def _begin(self) -> None:
        if self._closed:
            raise Unavailable("the ledger is closed")
        if self._superseded is not None:
            raise self._superseded
        if not self._registered:
            await self.store.register(self._owner, self.claimant, self._lease_s)
            self._registered = True

    async def _renew(self) -> None:
        """Raises Fatal if another process has taken this one's place."""
        if not await self.store.renew(self.claimant, self._lease_s):
            self._superseded = Fatal(
                f"ledger: another process took over from {self._owner} while this one was out of reach"
            )
            log.error("superseded in the ledger", owner=self._owner)
            raise self._superseded

    async def _stay_alive(self) -> None:
        """Renew the lease; what fails here is tried again, and an outage shows in the operations themselves."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with suppress(Unavailable):
                async with self._store_lock:
                    if not self._registered:
                        continue
                    with suppress(Fatal):  # which every operation raises from now on
                        await self._renew()
                    expired = await self.store.expire(self._retention_s, EXPIRE_BATCH)
                if expired:
                    log.info("ledger entries expired", entries=expired)

    async def close(self) -> None:
        """See the port. Operations that still wait, and those that come later, raise Unavailable."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(self._waiting, Unavailable("the ledger is closed"))
        await self.store.close()
