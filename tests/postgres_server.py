"""PostgreSQL for tests: a real server on a free port, its data in a directory of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import psycopg

_START_S = 60.0
_TRIES = 5  # a free port may be taken by another process before the server binds it


def missing_server() -> str | None:
    """Why PostgreSQL cannot run here, or None."""
    return None if _programs() is not None else "PostgreSQL is not installed (Debian: postgresql)"


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    onpath = shutil.which("initdb")
    return None if onpath is None else Path(onpath).resolve().parent


class PostgresServer:
    """A server that can be stopped, frozen, killed and started again with its data and its address."""

    def __init__(self) -> None:
        programs = _programs()
        if programs is None:
            raise RuntimeError(missing_server())
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._options: list[str] = []

    @property
    def conninfo(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def directory(self) -> Path:
        """Where its data are, and its certificates may be."""
        return self._directory

    def conninfo_as(self, user: str, **options: str) -> str:
        """Of another user, with options of libpq."""
        return f"postgresql://{user}@127.0.0.1:{self._port}/postgres?{urlencode(options)}"

    def require_tls(self, certificate: Path, key: Path) -> None:
        """Start anew with TLS: who is not `postgres` then needs it, and a password."""
        for file, name in ((certificate, "server.crt"), (key, "server.key")):
            target = self._directory / "data" / name
            shutil.copy(file, target)
            target.chmod(0o600)
            if self._user is not None:
                shutil.chown(target, self._user)
        rules = "local all postgres trust\nhost all postgres all trust\nhostssl all all all scram-sha-256\n"
        (self._directory / "data" / "pg_hba.conf").write_text(rules)
        self.stop()
        self._options = ["-c", "ssl=on"]
        self.start()

    def create(self) -> None:
        """Make the data and start."""
        data = self._directory / "data"
        command = [str(self._programs / "initdb"), "--no-sync", "--auth=trust", "--username=postgres", "-D", str(data)]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self._directory)
        for attempt in range(_TRIES):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
            try:
                self.start()
            except RuntimeError:
                if attempt == _TRIES - 1:
                    raise
            else:
                return

    def start(self) -> None:
        """Start, and return when it answers; RuntimeError with the end of its log if it does not."""
        options = ["-p", str(self._port), "-k", str(self._directory), "-h", "127.0.0.1", *self._options]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._directory / "data", *options],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self._directory,
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(psycopg.OperationalError), psycopg.connect(self.conninfo, connect_timeout=2):
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"PostgreSQL did not start:\n{(self._directory / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it at once, as a fast shutdown does."""
        self._end(signal.SIGINT)

    def _end(self, signum: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signum)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop all its processes where they are: the kernel still accepts connections, and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, signum: signal.Signals) -> None:
        assert self._process is not None
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in (parent, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
