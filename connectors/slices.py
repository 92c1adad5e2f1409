"""A slice of a flow's work: what one of several processes does that share nothing.

Each slice is a flow of its own, with its own recovery directory; a crash of one leaves the others as they are. Who owns
what follows from the number of slices alone, which therefore stays: another number is another flow, that begins anew.
"""

from dataclasses import dataclass
from typing import Literal
from zlib import crc32


@dataclass(frozen=True)
class Slice:
    """Slice `index` of `count`.

    by: "partition": it reads every count-th partition; for flows that read one topic. "tenant": it reads all of them,
    and takes up what belongs to its tenants; for flows in which several topics, with keys of their own, meet.
    """

    index: int
    count: int
    by: Literal["partition", "tenant"]

    def __post_init__(self) -> None:
        """Refuse what owns nothing."""
        if not 0 <= self.index < self.count:
            raise ValueError(f"slice {self.index} of {self.count}: it must be 0 to {self.count - 1}")

    def owns_partition(self, partition: int) -> bool:
        """Whether what is unreadable there, or all that is there, is this slice's."""
        return partition % self.count == self.index

    def owns_tenant(self, tenant: str) -> bool:
        """Whether the tenant's jobs are this slice's. CRC-32: the same in every process and release."""
        return crc32(tenant.encode()) % self.count == self.index

    def __str__(self) -> str:
        return f"slice {self.index} of {self.count} by {self.by}"
