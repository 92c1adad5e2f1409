"""A Kafka broker for development and tests, with nothing to install: librdkafka's mock cluster in a process of its own.

It speaks the wire protocol; idempotent producers and offset commits work. Its limits:

- in memory: it ends with its process, and all records with it;
- about 5 MB per partition, beyond which it *silently drops the oldest record*, so whoever produces must bound what is
  unconsumed (a consumer that comes too late is told "offset out of range");
- topics appear when they are first written to or asked about by a producer, always with 4 partitions; it cannot create
  topics by request, compact, or expire by time;
- a group's offsets are answered only for named partitions, never as a list.

`python -m connectors.kafka.embedded` prints {"bootstrap": "127.0.0.1:PORT"} and stays until its standard input closes
(so it dies with its parent, even one killed by kill -9), or until SIGTERM or Ctrl-C.
"""

import json
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from confluent_kafka import Producer

from schemas.errors import Fatal

_START_S = 30.0  # 0.3 s on an idle machine; Python's own start is most of it
_END_S = 5.0


class EmbeddedKafka:
    """Runs the embedded broker while entered; `bootstrap` is its address.

    It is in a session of its own, so that Ctrl-C in a terminal reaches the parent alone, which may then drain to it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._bootstrap: str | None = None

    @property
    def bootstrap(self) -> str:
        """HOST:PORT; only while entered."""
        if self._bootstrap is None:
            raise RuntimeError("the embedded Kafka is not running: enter it first")
        return self._bootstrap

    def create_topics(self, names: Sequence[str]) -> None:
        """Make topics of 4 partitions each by asking about them, as a producer's first write would."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "log_level": 2})
        for name in names:
            producer.list_topics(name, timeout=_START_S)

    def __enter__(self) -> Self:
        process = subprocess.Popen(
            [sys.executable, "-m", "connectors.kafka.embedded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._process = process
        try:
            self._bootstrap = self._first_line(process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _first_line(self, process: "subprocess.Popen[str]") -> str:
        if process.stdout is None:
            raise RuntimeError("started without a pipe")
        ready, _, _ = select.select([process.stdout], [], [], _START_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            raise Fatal(f"the embedded Kafka did not start within {_START_S:.0f} s; its error output says why")
        bootstrap: str = json.loads(line)["bootstrap"]
        return bootstrap

    def _end(self) -> None:
        process, self._process, self._bootstrap = self._process, None, None
        if process is None:
            return
        with process:  # closes the pipes, which is what ends it
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once, without a traceback
    # The cluster lives as long as this client; its own address is replaced by the cluster's.
    cluster = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 2})
    brokers = cluster.list_topics(timeout=_START_S).brokers.values()
    print(json.dumps({"bootstrap": ",".join(f"{broker.host}:{broker.port}" for broker in brokers)}), flush=True)  # noqa: T201  # the one line promised
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
