"""Back-pressure from the steps of a flow to its sources."""


class Pressure:
    """Names the steps that have all they can hold; while there is one, sources read no further, which shows as lag.

    Epochs go on closing meanwhile, so that snapshots, statuses and dead letters are not held up by a long outage. May
    be used from any thread.
    """

    def __init__(self) -> None:
        self._full: set[str] = set()

    def rise(self, step: str) -> None:
        """The step wants no more."""
        self._full.add(step)

    def fall(self, step: str) -> None:
        """The step has room again."""
        self._full.discard(step)

    @property
    def high(self) -> bool:
        """Whether sources should wait."""
        return bool(self._full)
