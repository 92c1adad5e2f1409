"""A ledger that is waited for: its outage is nobody's failure, and never a licence to call without it.

Every operation is repeated until it is answered, which the ledger's tokens make harmless. A result that is already paid
for is held in memory meanwhile; if the process ends before the ledger is back, its job is ambiguous, and said to be.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from connectors.circuit import Circuit
from connectors.ledger.port import Attempt, Claim, ClaimOutcome, Failure, JobRecord, Known, Ledger, Usage
from schemas.errors import Unavailable

T = TypeVar("T")


class PatientLedger(Ledger):
    """`ledger` behind its circuit: waits while the database is out of reach. Raises only Fatal."""

    def __init__(self, ledger: Ledger, circuit: Circuit) -> None:
        self._ledger = ledger
        self._circuit = circuit

    async def _patiently(self, item: str, operation: Callable[[], Awaitable[T]]) -> T:
        while True:
            async with self._circuit.permit(item) as permit:
                try:
                    answer = await operation()
                except Unavailable as error:
                    permit.failed(error)
                    continue
                permit.succeeded()
                return answer

    async def claim(self, attempt: Attempt) -> ClaimOutcome:
        """See the port."""
        return await self._patiently(attempt.job_id, lambda: self._ledger.claim(attempt))

    async def commit(self, claim: Claim, result: bytes, usage: Usage) -> bool:
        """See the port."""
        return await self._patiently(claim.job_id, lambda: self._ledger.commit(claim, result, usage))

    async def release(self, claim: Claim, *, failed: bool) -> bool:
        """See the port."""
        return await self._patiently(claim.job_id, lambda: self._ledger.release(claim, failed=failed))

    async def give_up(self, claim: Claim, failure: Failure) -> bool:
        """See the port."""
        return await self._patiently(claim.job_id, lambda: self._ledger.give_up(claim, failure))

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """See the port."""
        await self._patiently("published", lambda: self._ledger.mark_published(job_ids))

    async def find(self, job_id: str) -> JobRecord | None:
        """See the port."""
        return await self._patiently(job_id, lambda: self._ledger.find(job_id))

    async def look(self, job_id: str) -> Known | None:
        """See the port."""
        return await self._patiently(job_id, lambda: self._ledger.look(job_id))

    async def close(self) -> None:
        """See the port."""
        await self._ledger.close()
