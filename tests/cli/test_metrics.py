"""The port of a process of flows: probes that tell a flow that hangs from one that is busy, starting or stopping."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

from cli.metrics import Health, serve_metrics
from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord, Record
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource
from connectors.kafka.stop import Stop
from connectors.settings import Settings
from operators.write import by_part
from tests.chaos.conftest import port_of_now
from tests.headrace_process import headrace
from tests.kafka.client import wait_for, write

STALL_S = 1.0


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)  # our own
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # same
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Relay:
    """A flow on a broker, in a thread as `headrace run` has it, whose step blocks its thread on the word `block`."""

    def __init__(self, bootstrap: str) -> None:
        self.port = port_of_now()
        self.bootstrap = bootstrap
        self.stop = Stop()
        self.go_on = threading.Event()
        self.health = Health(["relay"], self.stop, stall_s=STALL_S)
        serve_metrics(Settings(metrics_port=self.port, stall_s=STALL_S, epoch_s=0.1), self.health)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        progress = self.health.flows["relay"]
        flow = Dataflow("relay")
        source = KafkaSource(self.bootstrap, ["in"], group_id="relay", stop=self.stop, epoch_s=0.1, progress=progress)
        taken = op.map("take", op.input("read", flow, source), self._take)
        batched = op.flat_map_batch("batch", taken, by_part)
        op.output("write", batched, KafkaSink(ReliableProducer(self.bootstrap), progress=progress))
        cluster_main(flow, [], 0, epoch_interval=timedelta(seconds=0.09))

    def _take(self, record: Record) -> tuple[str, OutgoingRecord]:
        if record.value == b"block":
            self.go_on.wait(60)
        return "key", OutgoingRecord("out", b"key", record.value or b"", ())

    def says(self, path: str, status: int) -> str:
        """What it says once it answers with that status."""
        wait_for(f"{path} {status}", lambda: ask(self.port, path)[0] == status)
        return ask(self.port, path)[1]


@pytest.fixture
def relay() -> Iterator[Relay]:
    with EmbeddedKafka() as broker:
        broker.create_topics(["in", "out"])
        relay = Relay(broker.bootstrap)
        yield relay
        relay.go_on.set()
        relay.stop.request(drain_s=0)
        if relay.thread.is_alive():
            relay.thread.join(60)


def test_a_flow_is_ready_after_its_first_epoch_and_alive_before(relay: Relay) -> None:
    assert ask(relay.port, "/livez")[0] == 200
    status, line = ask(relay.port, "/readyz")
    assert status == 503
    assert line.startswith("relay: no epoch is closed yet")
    relay.thread.start()
    assert relay.says("/readyz", 200).startswith("relay: last epoch 0.")


def test_a_flow_whose_thread_hangs_is_not_alive_and_its_metrics_still_answer(relay: Relay) -> None:
    relay.thread.start()
    relay.says("/readyz", 200)
    write(relay.bootstrap, "in", [b"block"])
    line = relay.says("/livez", 503)
    assert line.startswith("relay: last epoch ")
    assert line.endswith(f"and HEADRACE_STALL_S is {STALL_S:g}\n")
    status, metrics = ask(relay.port, "/metrics")
    assert status == 200
    assert 'headrace_epoch_seconds_count{flow="relay"}' in metrics
    relay.go_on.set()
    relay.says("/livez", 200)


def test_a_flow_that_drains_is_alive_and_not_ready(relay: Relay) -> None:
    relay.thread.start()
    relay.says("/readyz", 200)
    write(relay.bootstrap, "in", [b"block"])
    relay.says("/livez", 503)
    relay.stop.request(drain_s=60)
    assert ask(relay.port, "/readyz") == (503, "relay: stopping\n")
    status, line = ask(relay.port, "/livez")
    assert status == 200
    assert line.endswith("; stopping\n")


def test_the_port_serves_gets_and_heads_of_what_it_names(relay: Relay) -> None:
    assert ask(relay.port, "/livez?verbose", "HEAD") == (200, "")
    assert ask(relay.port, "/metrics", "HEAD") == (200, "")
    assert ask(relay.port, "/") == (404, "not found; this port serves /metrics, /livez, /readyz\n")
    assert ask(relay.port, "/metrics", "POST")[0] == 501


def test_a_gateway_has_no_flows_that_could_be_alive() -> None:
    port = port_of_now()
    serve_metrics(Settings(metrics_port=port))
    assert ask(port, "/livez") == (404, "not found; this port serves /metrics\n")


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104  # as the metrics do
        port = str(taken.getsockname()[1])
        refused = headrace("run", "usage", HEADRACE_METRICS_PORT=port, HEADRACE_KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert refused.returncode == 1
    assert f"HEADRACE_METRICS_PORT={port}: " in refused.stderr.splitlines()[-1]


def test_a_stall_that_is_no_longer_than_two_epochs_is_refused() -> None:
    refused = headrace("run", "usage", HEADRACE_STALL_S="10", HEADRACE_EPOCH_S="6")
    assert refused.returncode == 2
    assert "HEADRACE_STALL_S=10: must be at least twice HEADRACE_EPOCH_S=6" in refused.stderr
