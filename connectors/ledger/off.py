"""No ledger: every request is called for, and what a crash interrupts is called, and paid, again."""

from collections.abc import Sequence

from connectors.ledger.port import Attempt, Claim, Failure, JobRecord, Known, Ledger, Usage


class NoLedger(Ledger):
    """Grants every claim and remembers nothing; for models that cost nothing."""

    async def claim(self, attempt: Attempt) -> Claim:
        """Always."""
        return Claim(attempt.job_id, attempt.token)

    async def commit(self, claim: Claim, result: bytes, usage: Usage) -> bool:
        """Always."""
        del claim, result, usage
        return True

    async def release(self, claim: Claim, *, failed: bool) -> bool:
        """Always."""
        del claim, failed
        return True

    async def give_up(self, claim: Claim, failure: Failure) -> bool:
        """Always."""
        del claim, failure
        return True

    async def mark_published(self, job_ids: Sequence[str]) -> None:
        """Nothing to mark."""

    async def find(self, job_id: str) -> JobRecord | None:
        """Nothing is known."""
        del job_id
        return None

    async def look(self, job_id: str) -> Known | None:
        """Nothing is known."""
        del job_id
        return None

    async def close(self) -> None:
        """Nothing to close."""
