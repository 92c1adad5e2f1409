"""Headrace: a flow of the project's own operators, run as `headrace run` runs any other, with every default."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

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


def _identity(envelope: Envelope[RequestSubmitted]) -> str:
    return envelope.body.job_id


def _enriched(envelope: Envelope[RequestSubmitted], output: str) -> OutgoingRecord:
    body = envelope.body
    headers = (
        ("ce_id", body.key_bytes),
        ("ce_source", b"headrace/control.enrich"),
    )  # as every event of a flow has them
    return OutgoingRecord(output, body.key_bytes, enrich(body), headers)


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
    """Run it until SIGTERM; in a cluster of `PEERS_PROCESSES` processes, if there are to be several."""
    count = int(os.environ.get("PEERS_PROCESSES", "1"))
    if count > 1 and "HEADRACE_CLUSTER" not in os.environ:
        _cluster(count)
        return
    output = Place.told().output
    settings = load()
    configure_logs(settings.log_level)

    def control(name: str, runtime: Runtime, connectors: Connectors, settings: Settings) -> Dataflow:
        del name, connectors, settings
        return build(runtime, output)

    run.build = control  # type: ignore[attr-defined]  # a flow of ours in place of the product's
    run.run_flows((FLOW,), settings, Stop())


def _cluster(count: int) -> None:
    """As many of this program, which run the flow together."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        addresses = ",".join(f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
    processes = [
        subprocess.Popen(  # ourselves
            [sys.executable, "-m", "benchmarks.peers.control.headrace_flow"],
            env=os.environ | {"HEADRACE_CLUSTER": addresses, "HEADRACE_CLUSTER_PROCESS": str(number)},
        )
        for number in range(count)
    ]

    def terminate(*_: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, terminate)
    for process in processes:
        process.wait()


if __name__ == "__main__":
    main()
