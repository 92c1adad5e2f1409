"""Back-pressure from the steps of a flow to its sources."""


class Pressure:
    """Names the steps that have all they can hold; while there is one, sources read no further, which shows as lag.

    Epochs go on closing meanwhile, so that snapshots, statuses and dead letters are not held up by a long outage. May
    be used from any thread. In a cluster the sources of all processes wait for a step of any (`operators.signals`).
    """

    def __init__(self) -> None:
        self._full: set[str] = set()
        self._full_elsewhere: set[int] = set()

    def rise(self, step: str) -> None:
        """The step wants no more."""
        self._full.add(step)

    def fall(self, step: str) -> None:
        """The step has room again."""
        self._full.discard(step)

    def elsewhere(self, process: int, *, high: bool) -> None:
        """Another process of the cluster wants no more, or has room again."""
        (self._full_elsewhere.add if high else self._full_elsewhere.discard)(process)

    @property
    def high_here(self) -> bool:
        """Whether a step of this process wants no more."""
        return bool(self._full)

    @property
    def high(self) -> bool:
        """Whether sources should wait."""
        return bool(self._full or self._full_elsewhere)
