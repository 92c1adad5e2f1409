"""`headrace run FLOW --processes N`: a cluster on this machine, started together, and again where one was killed.

On Kubernetes a StatefulSet does this; here it is for a machine with many cores, and to try a cluster.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from types import FrameType

import click
import structlog

from cli.configuration import bootstrap_of
from connectors.kafka.stop import Stop
from connectors.settings import PREFIX, Settings
from schemas.errors import HeadraceError

log = structlog.get_logger()

_POLL_S = 0.05
_LOST_S = 10.0  # the others notice within a moment, and close what they have open
_GRACE_S = 15.0  # after the drain: the last snapshot, and what connectors have to flush
_AGAIN_S = 0.5  # doubled for each start that follows soon, up to:
_AGAIN_CAP_S = 30.0
_STEADY_S = 60.0  # what has run so long is well: the next start is the first one


class _Process:
    """One process of the cluster; it ends with this one, however this one ends."""

    def __init__(self, flow: str, number: int, addresses: tuple[str, ...], settings: Settings) -> None:
        self.number = number
        ours = {
            f"{PREFIX}KAFKA_BOOTSTRAP": bootstrap_of(settings),
            f"{PREFIX}CLUSTER": ",".join(addresses),
            f"{PREFIX}CLUSTER_PROCESS": str(number),
        }
        if settings.metrics_port is not None:
            ours[f"{PREFIX}METRICS_PORT"] = str(settings.metrics_port + number)
        files = {f"{name}_FILE" for name in ours}
        environment = {name: value for name, value in os.environ.items() if name not in files} | ours
        self._process = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-m", "cli.main", "run", flow, "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends all in order
        )
        self._said = b""  # its last line, which may be a part of one
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether it has said that it runs. Reads on after that: Bytewax says each attempt to connect, too."""
        out = self._process.stdout
        while out is not None and select.select([out], [], [], 0)[0] and (more := os.read(out.fileno(), 65_536)):
            *lines, self._said = (self._said + more).split(b"\n")
            self._ready = self._ready or any(line.startswith(b"running:") for line in lines)
        return self._ready

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative number of the signal that has killed it."""
        return self._process.poll()

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal from outside that has ended it. An abort is its own: it follows the loss of another process."""
        code = self._process.poll()
        return signal.Signals(-code) if code is not None and code < 0 and code != -signal.SIGABRT else None

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def run_cluster(flow: str, processes: int, settings: Settings, stop: Stop) -> None:
    """Run `flow` in so many processes until `stop`, then let them drain.

    When one is killed the others end too, by Bytewax's nature; all are started again, and resume. Raises HeadraceError
    when one ends by itself: it has said why, and would again.
    """

    def handle(signum: int, _frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(signum).name, drain_s=settings.drain_s)
        stop.request(drain_s=settings.drain_s)
        signal.signal(signum, signal.SIG_DFL)  # a second one ends this process at once; the others drain without it

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, handle)
    again_s = _AGAIN_S
    while True:
        began = time.monotonic()
        with ExitStack() as stack:
            addresses = _free_addresses(processes)
            started = [_Process(flow, number, addresses, settings) for number in range(processes)]
            for each in started:
                stack.callback(each.kill)
            lost = _watch(flow, started, stop, settings)
        if lost is None:
            return
        again_s = _AGAIN_S if time.monotonic() - began > _STEADY_S else min(again_s * 2, _AGAIN_CAP_S)
        log.warning(
            "a process of the cluster was killed; all start again",
            flow=flow,
            process=lost.number,
            signal=None if lost.killed_by is None else lost.killed_by.name,
            again_s=again_s,
        )
        if stop.wait(again_s):
            return


def _watch(flow: str, started: list[_Process], stop: Stop, settings: Settings) -> _Process | None:
    """Until all have ended; which one was killed, if that is why. Raises HeadraceError if one has failed."""
    said = False
    while not stop.requested and all(each.exit_code is None for each in started):
        if sum(each.ready for each in started) == len(started) and not said:
            click.echo(f"running: {flow} in {len(started)} processes")
            said = True
        stop.wait(_POLL_S)
    if stop.requested:
        for each in started:
            each.terminate()
        _wait_for_all(started, settings.drain_s + _GRACE_S)
    else:
        _wait_for_all(started, _LOST_S)
    killed = next((each for each in started if each.killed_by is not None), None)
    if killed is not None and not stop.requested:
        return killed
    for each in started:
        if each.exit_code is None:
            raise HeadraceError(f"process {each.number} of {flow} did not end, and was killed; nothing is lost by that")
        if stop.requested and each.killed_by == signal.SIGTERM:
            continue  # ours, and it had not come so far that it would have drained
        if each.exit_code != 0:
            raise HeadraceError(
                f"process {each.number} of {flow} ended with exit code {each.exit_code}; what it said above tells why"
            )
    return None


def _wait_for_all(started: list[_Process], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and any(each.exit_code is None for each in started):
        time.sleep(_POLL_S)


def _free_addresses(count: int) -> tuple[str, ...]:
    """Ports of this machine that are free now; all are held until the last one is found, so that no two are equal."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
