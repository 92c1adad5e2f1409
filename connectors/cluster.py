"""Several processes that run one flow together, as Bytewax's own cluster: keyed state is spread over all of them.

What is between them is unauthenticated pickle: nobody else may reach these addresses. A process that dies takes the
others with it; they are started again together, and resume from the last snapshot.
"""

from dataclasses import dataclass

MOST_PROCESSES = 32
"""In a cluster: a crash of one is a restart of all, so that many more are better cut into slices."""


@dataclass(frozen=True)
class Cluster:
    """This process among those that run a flow.

    addresses: `host:port` of each, in order; the same list in all of them. One process needs none.
    """

    addresses: tuple[str, ...] = ()
    process: int = 0

    def __post_init__(self) -> None:
        """Refuse a place that is not in the list, and too long a list."""
        if self.size > MOST_PROCESSES:
            raise ValueError(f"a cluster of {self.size} processes: at most {MOST_PROCESSES}; cut the flow into slices")
        if not 0 <= self.process < self.size:
            raise ValueError(f"process {self.process} of a cluster of {self.size}: it must be 0 to {self.size - 1}")

    @property
    def size(self) -> int:
        """Processes."""
        return max(len(self.addresses), 1)

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1
