"""Run a program and know what it costs: CPU seconds, peak resident memory and wall time of its whole process tree."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Self

from benchmarks.peers.environments import ROOT, Unavailable

LOOK_S = 0.1
"""How often the process tree is looked at: what a process uses after the last look is not counted."""

_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_END_S = 60.0


def tree(root: int) -> list[int]:
    """The process and all below it, as far as they are alive."""
    found = [root]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in children.read_text().split()]
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def resident_bytes(pids: Sequence[int]) -> int:
    """Resident memory of processes, added up; what they share counts for each."""
    return sum(int(stat[21]) * _PAGE_BYTES for stat in map(_stat, pids) if stat is not None)


class Program:
    """A program that runs while entered, in a session of its own; looked at every 100 ms until it has ended.

    Each line of JSON on its stdout is kept for `line`; stderr goes to `log`.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], *, log: Path, cwd: Path = ROOT) -> None:
        self._command = list(command)
        self._variables = dict(variables)
        self._log = log
        self._cwd = cwd
        self._lines: Queue[dict[str, object]] = Queue()
        self._cpu_s: dict[int, float] = {}
        self._ended_at: float | None = None
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self.peak_rss_bytes = 0
        self.rss_bytes = 0

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # a benchmark's own program
                self._command,
                env=self._variables,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._began_at = time.monotonic()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._watch, self._listen)]
        for thread in self._threads:
            thread.start()
        return self

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far, of all processes that were ever seen in the tree."""
        self._look()
        return sum(self._cpu_s.values())

    @property
    def wall_s(self) -> float:
        """Seconds since the start; until the end if it has ended."""
        return (self._ended_at or time.monotonic()) - self._began_at

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def line(self, timeout_s: float) -> dict[str, object]:
        """Its next line of JSON. Raises Unavailable, with the end of its log, if it ends or says nothing in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                return self._lines.get(timeout=LOOK_S)
            except Empty:
                if not self.running and not self._threads[1].is_alive() and self._lines.empty():
                    raise Unavailable(f"ended with exit code {self.process.returncode}: {self.said()}") from None
        raise Unavailable(f"said nothing for {timeout_s:.0f} s: {self.said()}")

    def said(self, lines: int = 3) -> str:
        """The last lines of its log."""
        if not self._log.exists():
            return ""
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL to all processes of its session's group."""
        self._end(signal.SIGKILL)

    def terminate(self, timeout_s: float = _END_S) -> int:
        """SIGTERM, and SIGKILL if that does not end it in time; the exit code."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Raises Unavailable if it does not end in time; it is then killed."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Unavailable(f"did not end within {timeout_s:.0f} s: {self.said()}") from None

    def _end(self, signum: signal.Signals) -> None:
        self._look()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)
        self.process.wait()

    def _watch(self) -> None:
        while self.running:
            self._look()
            time.sleep(LOOK_S)
        self._ended_at = time.monotonic()

    def _look(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked_at < LOOK_S / 2:
                return
            pids = tree(self.process.pid)
            for pid in pids:
                stat = _stat(pid)
                if stat is not None:
                    self._cpu_s[pid] = (int(stat[11]) + int(stat[12])) / _TICKS_S
            self.rss_bytes = resident_bytes(pids)
            self.peak_rss_bytes = max(self.peak_rss_bytes, self.rss_bytes)
            self._looked_at = time.monotonic()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # noqa: S101  # Popen was asked for a pipe
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # a library's own words
            if isinstance(said, dict):
                self._lines.put(said)

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)  # whatever it has started is in its group
        for thread in self._threads:
            thread.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
