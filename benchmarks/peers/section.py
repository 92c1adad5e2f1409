"""What a section of `headrace bench peers` is asked for, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import Aim


@dataclass(frozen=True)
class Request:
    """What to measure."""

    systems: frozenset[str]  # empty: all
    quick: bool  # small sizes: it works, and its figures say nothing
    directory: Path  # for data and logs; removed afterwards
    say: Callable[[str], None]  # progress, to stderr
    rounds: int = 3  # of control and ingestion: of each system, alternately
    minutes: float = 60.0  # of a soak
    events: int | None = None  # of control, and of the least size of growth, if not their own numbers

    def wants(self, system: str) -> bool:
        """Whether `system` is asked for."""
        return not self.systems or system in self.systems


@dataclass(frozen=True)
class Findings:
    """What was measured. A module `benchmarks.peers.SECTION.measured` has SYSTEMS and `measure(Request) -> Findings`.

    Keys of `figures` are `system.figure`. A system that cannot run here has the one figure `system.unavailable`: why.
    """

    figures: dict[str, object] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)  # figures named without the section
