"""Relay flows (relay_flow.py) as processes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Relay:
    """Relays from one topic to another, one after the other or side by side, on one recovery directory."""

    options: dict[str, object]
    errors: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, **changes: object) -> "subprocess.Popen[str]":
        """Start one, after the last has ended or beside it."""
        options = json.dumps({**self.options, **changes})
        command = [sys.executable, "-m", "tests.kafka.relay_flow", options]
        with self.errors.open("a") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stderr=errors, stdout=errors, text=True)
        self.processes.append(process)
        return process

    def stop(self, process: "subprocess.Popen[str]") -> int:
        """SIGTERM, and the exit code."""
        process.terminate()
        return process.wait(60.0)

    def printed(self) -> str:
        """Everything the processes wrote."""
        return self.errors.read_text()


@contextmanager
def relays(directory: Path) -> Iterator[Callable[..., Relay]]:
    """Make relays between two topics; what is still running at the end is killed."""
    made: list[Relay] = []

    def make(bootstrap: str, source: str, sink: str, **options: object) -> Relay:
        recovery = str(directory / "recovery")
        names = {"bootstrap": bootstrap, "source": source, "sink": sink, "recovery": recovery, "group": f"g-{source}"}
        made.append(Relay({**names, **options}, directory / "errors.txt"))
        return made[-1]

    try:
        yield make
    finally:
        for process in (process for each in made for process in each.processes):
            process.kill()
            process.wait()
