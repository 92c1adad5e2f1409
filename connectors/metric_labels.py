"""What producers choose must not make metrics without bound: Prometheus keeps every value of a label for good."""

OTHER = "other"
"""Stands for all names beyond the bound."""


class Bounded:
    """The first `most` names that come keep theirs; all others are `other`. May be used from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """What a metric calls `name`: always the same, in this process."""
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


TENANTS = Bounded(1000)
"""As many as one process tells apart: a gigabyte of Prometheus holds a million series, and each has some of them."""

MODELS = Bounded(100)
"""As their servers call them."""

TOOLS = Bounded(100)
"""As whoever answers a call names them."""
