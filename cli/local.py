"""Everything local: the embedded Kafka and the fused flows, each a process of its own, ended together."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from connectors.kafka.embedded import EmbeddedKafka
from connectors.settings import PREFIX
from schemas.errors import HeadraceError
from schemas.topics import CATALOGUE, dead_letter_topics

FLOWS = ("ingest", "answer")
START_S = 120.0  # a cold disk has 3 GB of libraries to read


def obey_signals() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt, also where a parent shell had SIGINT ignored."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)


class LocalStack:
    """A broker and `headrace run` on it, of `ingest` and `answer` unless other flows are named.

    The broker lives in memory, so its flows start from empty recovery state each time; the vector index in `data_dir`
    stays. Both processes end with this one, however it ends. One stack has a `data_dir` at a time.
    """

    def __init__(
        self, data_dir: Path, *, file_roots: tuple[Path, ...], drain_s: float, flows: tuple[str, ...] = FLOWS
    ) -> None:
        self._names = flows
        self._data_dir = data_dir
        self._file_roots = file_roots
        self._drain_s = drain_s
        self._stack = ExitStack()
        self._flows: subprocess.Popen[bytes] | None = None
        self.bootstrap = ""
        self.log = data_dir / "flows.log"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(self._alone())
            kafka = stack.enter_context(EmbeddedKafka())
            kafka.create_topics([topic.name for topic in (*CATALOGUE, *dead_letter_topics())])
            self.bootstrap = kafka.bootstrap
            recovery = self._data_dir / "recovery-embedded"
            shutil.rmtree(recovery, ignore_errors=True)  # of a broker that is gone
            log = stack.enter_context(self.log.open("wb"))
            environment = os.environ | {
                f"{PREFIX}KAFKA_BOOTSTRAP": self.bootstrap,
                f"{PREFIX}KAFKA_OPTIONS": "{}",  # those of another broker
                f"{PREFIX}DATA_DIR": str(self._data_dir.resolve()),
                f"{PREFIX}RECOVERY_DIR": str(recovery.resolve()),
                f"{PREFIX}LEDGER": str(recovery.resolve() / "ledger.sqlite"),  # what it calls published is gone as well
                f"{PREFIX}FILE_ROOTS": json.dumps([str(root.resolve()) for root in self._file_roots]),
                f"{PREFIX}DRAIN_S": str(self._drain_s),
            }
            self._flows = subprocess.Popen(  # noqa: S603  # our own command
                [sys.executable, "-m", "cli.main", "run", *self._names, "--until-stdin-closes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the flows in order
            )
            stack.callback(self._end_flows)
            self._await_flows(self._flows)
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self._data_dir / "up.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise HeadraceError(
                f"`headrace up` already runs in {self._data_dir}; submit to that one, "
                "or set HEADRACE_DATA_DIR to another directory"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _await_flows(self, flows: subprocess.Popen[bytes]) -> None:
        """Wait for the line that says that they run: until then they load the model, 5 to 30 s."""
        if flows.stdout is None:
            raise RuntimeError("started without a pipe")
        ready, _, _ = select.select([flows.stdout], [], [], START_S)
        if not ready:
            raise HeadraceError(f"the flows did not start within {START_S:.0f} s; their log: {self.log}")
        if not flows.stdout.readline():  # the end of a process that failed
            flows.wait(timeout=START_S)
            self.check()

    def check(self) -> None:
        """Raises HeadraceError with the flows' last words if they have ended."""
        if self._flows is None or self._flows.poll() is None:
            return
        lines = self.log.read_text(errors="replace").strip().splitlines()
        ours = [line for line in lines if line.startswith("headrace:")]  # libraries have last words of their own
        last = (ours or lines or ["it said nothing"])[-1]
        raise HeadraceError(f"the flows ended with exit code {self._flows.returncode}: {last} (log: {self.log})")

    def _end_flows(self) -> None:
        flows = self._flows
        if flows is None:
            return
        if flows.stdin is not None:
            flows.stdin.close()
        flows.terminate()
        if flows.stdout is not None:
            flows.stdout.close()
        try:
            flows.wait(timeout=self._drain_s + 15)  # the drain, then the last snapshot and the index's flush
        except subprocess.TimeoutExpired:
            flows.kill()
            flows.wait()

    def __exit__(self, *_: object) -> None:
        self._stack.close()
