"""A flow for tests, run as a process so that signals and kills are real: copies one topic to another.

Its only argument is a JSON object, see `Options`. Failures are one line on stderr and exit code 1.
"""

import json
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord, Record
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource, Position
from connectors.kafka.stop import Stop
from connectors.kafka.topics import ensure_reachable
from operators.write import by_part
from schemas.errors import HeadraceError


@dataclass(frozen=True)
class Options:
    """How one run goes."""

    bootstrap: str
    source: str
    sink: str
    recovery: str
    group: str = "relay"
    steps: int = 1  # stateless steps between source and sink
    workers: int = 1
    epoch_s: float = 0.2
    max_per_epoch: int = 1000
    delivery_timeout_s: float = 60.0
    resumed_at: str | None = None  # a file that gets one line "topic/partition offset" per partition


class TracedSource(KafkaSource):
    """Writes down where each partition resumes."""

    def trace_to(self, path: Path) -> None:
        self._trace = path

    def build_part(self, step_id: str, for_part: str, resume_state: Position | None):  # type: ignore[no-untyped-def]  # noqa: ANN201  # as its base
        with self._trace.open("a") as file:
            file.write(f"{for_part} {resume_state[1] if resume_state else 0}\n")
        return super().build_part(step_id, for_part, resume_state)


def identity(record: Record) -> Record:
    """A step of the tail."""
    return record


def build(options: Options, source: KafkaSource, producer: ReliableProducer) -> Dataflow:
    """Source ─► step ─► ... ─► step ─► sink."""

    def outgoing(record: Record) -> tuple[str, OutgoingRecord]:
        key = record.key or b""
        return key.decode(), OutgoingRecord(options.sink, key, record.value or b"", record.headers)

    flow = Dataflow("relay")
    stream = op.input("read", flow, source)
    for step in range(options.steps):
        stream = op.map(f"step_{step}", stream, identity)
    batched = op.flat_map_batch("batch", op.map("outgoing", stream, outgoing), by_part)
    op.output("write", batched, KafkaSink(producer))
    return flow


def run(options: Options, stop: Stop) -> None:
    """Run until `stop` is requested."""
    ensure_reachable(options.bootstrap)
    arguments = {"group_id": options.group, "stop": stop, "max_per_epoch": options.max_per_epoch}
    if options.resumed_at is None:
        source = KafkaSource(options.bootstrap, [options.source], **arguments)  # type: ignore[arg-type]  # a mixed dict
    else:
        source = TracedSource(options.bootstrap, [options.source], **arguments)  # type: ignore[arg-type]  # same
        source.trace_to(Path(options.resumed_at))
    producer = ReliableProducer(options.bootstrap, delivery_timeout_s=options.delivery_timeout_s)
    with RecoveryDirectory(Path(options.recovery)) as recovery:
        cluster_main(
            build(options, source, producer),
            [],
            0,
            epoch_interval=timedelta(seconds=options.epoch_s),
            recovery_config=recovery.config(),
            worker_count_per_proc=options.workers,
        )


def main() -> int:
    """Run beside the main thread, which takes the signals."""
    options = Options(**json.loads(sys.argv[1]))
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.request())
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run(options, stop)
        except BaseException as error:  # noqa: BLE001  # handed to the main thread
            failures.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None and not isinstance(cause, HeadraceError):
            cause = cause.__cause__
        sys.stderr.write(f"{type(failure).__name__}: {cause or failure!r}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
