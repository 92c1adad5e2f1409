"""Everything local: the embedded Kafka, the fused flows and the gateway, each a process of its own, ended together."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
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


class _Child:
    """A `headrace` command as a process: ready once it has said its first line, and ended with this process."""

    def __init__(self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._name = name
        self._arguments = arguments
        self._environment = environment

    def start(self, end_s: float) -> None:
        """Start it. `end_s`: what its end may take."""
        self._end_s = end_s
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                [sys.executable, "-m", "cli.main", *self._arguments, "--until-stdin-closes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(self._environment),
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends all in order
            )

    def first_line(self) -> str:
        """Wait for the line that says that it runs: until then flows load the model, 5 to 30 s."""
        if self._process.stdout is None:
            raise RuntimeError("started without a pipe")
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        if not ready:
            raise HeadraceError(f"{self._name} did not start within {START_S:.0f} s; log: {self.log}")
        line = self._process.stdout.readline().decode()
        if not line:  # the end of a process that failed
            self._process.wait(timeout=START_S)
            self.check()
        return line.strip()

    def check(self) -> None:
        """Raises HeadraceError with the last words of a process that has ended."""
        if self._process.poll() is None:
            return
        lines = self.log.read_text(errors="replace").strip().splitlines()
        ours = [line for line in lines if line.startswith("headrace:")]  # libraries have last words of their own
        last = (ours or lines or ["it said nothing"])[-1].removeprefix("headrace: ")
        raise HeadraceError(f"{self._name} ended with exit code {self._process.returncode}: {last} (log: {self.log})")

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(timeout=self._end_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class LocalStack:
    """A broker, and `headrace run` on it: `ingest` and `answer`, unless other flows are named.

    The broker lives in memory, so its flows start from empty recovery state each time; the vector index in `data_dir`
    stays. With `gateway_port` there is a gateway, too; 0 is any free port. All processes end with this one, however it
    ends. One stack has a `data_dir` at a time.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        file_roots: tuple[Path, ...],
        drain_s: float,
        flows: tuple[str, ...] = FLOWS,
        gateway_port: int | None = None,
    ) -> None:
        self._flows = flows
        self._data_dir = data_dir
        self._file_roots = file_roots
        self._drain_s = drain_s
        self._gateway_port = gateway_port
        self._stack = ExitStack()
        self._children: list[_Child] = []
        self.bootstrap = ""
        self.gateway_url = ""
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
            recovery.mkdir(mode=0o700)
            environment = self._environment(recovery.resolve())
            flows = self._start(stack, "the flows", ("run", *self._flows), environment, self.log)
            gateway: _Child | None = None
            if self._gateway_port is not None:  # beside the flows, which take long to start
                arguments = ("gateway", "--host", "127.0.0.1", "--port", str(self._gateway_port))
                environment = {name: value for name, value in environment.items() if name != f"{PREFIX}METRICS_PORT"}
                gateway = self._start(stack, "the gateway", arguments, environment, self._data_dir / "gateway.log")
                self.gateway_url = gateway.first_line().removeprefix("gateway: ")
            flows.first_line()
            self._stack = stack.pop_all()
        return self

    def _environment(self, recovery: Path) -> Mapping[str, str]:
        ours = {
            f"{PREFIX}KAFKA_BOOTSTRAP": self.bootstrap,
            f"{PREFIX}DATA_DIR": str(self._data_dir.resolve()),
            f"{PREFIX}RECOVERY_DIR": str(recovery),
            f"{PREFIX}LEDGER": str(recovery / "ledger.sqlite"),  # what it calls published is gone as well
            f"{PREFIX}READ_MODEL": str(recovery / "read_model.sqlite"),  # of the broker that is gone
            f"{PREFIX}FILE_ROOTS": json.dumps([str(root.resolve()) for root in self._file_roots]),
            f"{PREFIX}DRAIN_S": str(self._drain_s),
        }
        others = (f"{PREFIX}KAFKA_", *(f"{name}_FILE" for name in ours))  # of another broker, and of another place
        return {name: value for name, value in os.environ.items() if not name.startswith(others)} | ours

    def _start(
        self, stack: ExitStack, name: str, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path
    ) -> _Child:
        child = _Child(name, arguments, environment, log)
        child.start(end_s=self._drain_s + 15)  # the drain, then the last snapshot and the index's flush
        stack.callback(child.end)
        self._children.append(child)
        return child

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

    def check(self) -> None:
        """Raises HeadraceError with the last words of a process that has ended."""
        for child in self._children:
            child.check()

    def __exit__(self, *_: object) -> None:
        self._stack.close()
