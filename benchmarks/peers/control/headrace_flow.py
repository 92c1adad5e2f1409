"""Headrace: a flow of the project's own operators, run as `headrace run` runs any other, with every default."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from benchmarks.peers.control.work import Place, enrich
from cli import run
from cli.logs import configure_logs
from cli.wiring import Connectors
from connectors.kafka.record import OutgoingRecord
from connectors.kafka.stop import Stop
from connectors.settings import Settings, load
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.dedup import DedupPolicy, dedup
from operators.envelope import Envelope
from operators.runtime import Runtime
from operators.write import write
from schemas.requests import RequestSubmitted

FLOW = "control"
PROCESSES = 2


def _identity(envelope: Envelope[RequestSubmitted]) -> str:
    return envelope.body.job_id


def _enriched(envelope: Envelope[RequestSubmitted], output: str) -> OutgoingRecord:
    return OutgoingRecord(output, envelope.body.key_bytes, enrich(envelope.body))


def build(runtime: Runtime, output: str) -> Dataflow:
    """requests.submitted ─► dedup ─► enrich ─► `output`; malformed ones ─► requests.submitted.dlq."""
    flow = Dataflow(FLOW)
    submitted = consume("submitted", flow, RequestSubmitted, runtime)
    known = dedup("dedup", submitted.oks, _identity, DedupPolicy())
    enriched = op.map_value("enrich", known.fresh, partial(_enriched, output=output))
    write("write", enriched, runtime)
    dead_letter("dlq", submitted.errs, runtime=runtime)
    return flow


def main() -> None:
    """Run it until SIGTERM; with `PEERS_TOGETHER`, in two processes: `cluster` or `slices`."""
    together = os.environ.get("PEERS_TOGETHER")
    if together is not None and "PEERS_PART" not in os.environ:
        _run_together(_cluster() if together == "cluster" else _slices())
        return
    output = Place.told().output
    settings = load()
    configure_logs(settings.log_level)

    def control(name: str, runtime: Runtime, connectors: Connectors, settings: Settings) -> Dataflow:
        del name, connectors, settings
        return build(runtime, output)

    run.build = control  # type: ignore[attr-defined]  # a flow of ours in place of the product's
    run.run_flows((FLOW,), settings, Stop())


def _cluster() -> Iterator[dict[str, str]]:
    """What makes each process one of a cluster."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(PROCESSES)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        addresses = ",".join(f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
    for number in range(PROCESSES):
        yield {"HEADRACE_CLUSTER": addresses, "HEADRACE_CLUSTER_PROCESS": str(number)}


def _slices() -> Iterator[dict[str, str]]:
    """What makes each process a slice, with a directory of its own."""
    for number in range(PROCESSES):
        directory = str(Path(os.environ["HEADRACE_DATA_DIR"]) / str(number))
        yield {"HEADRACE_SLICES": str(PROCESSES), "HEADRACE_SLICE": str(number), "HEADRACE_DATA_DIR": directory}


def _run_together(parts: Iterator[dict[str, str]]) -> None:
    """As many of this program, until SIGTERM."""
    processes = [
        subprocess.Popen(  # ourselves
            [sys.executable, "-m", "benchmarks.peers.control.headrace_flow"],
            env=os.environ | part | {"PEERS_PART": str(number)},
        )
        for number, part in enumerate(parts)
    ]

    def terminate(*_: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, terminate)
    for process in processes:
        process.wait()


if __name__ == "__main__":
    main()
