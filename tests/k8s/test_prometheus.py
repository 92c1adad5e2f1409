"""A real Prometheus, with the configuration of docker-compose.yml, on a gateway and a flow that run."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import yaml

from connectors.kafka.embedded import EmbeddedKafka
from tests.gateway.running import RunningGateway, create_all_topics, until
from tests.headrace_process import RunningFlows
from tests.k8s.queries import DASHBOARDS, MONITORING, RULES, every_expression, rules, targets
from tests.k8s.rendering import compose, needed
from tests.k8s.test_image import health_check

START_S = 60.0
END_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Prometheus:
    """A server with our configuration, whose targets are here."""

    def __init__(self, directory: Path, ports: dict[str, int]) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for group in config["scrape_configs"][0]["static_configs"]:
            group["targets"] = [
                f"127.0.0.1:{ports[target.partition(':')[0]]}"
                for target in group["targets"]
                if target.partition(":")[0] in ports
            ]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        (directory / "rules.yml").write_text(RULES.read_text())
        port = free_port()
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    needed("prometheus"),
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=END_S, trust_env=False)
        until(self._ready, within_s=START_S)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with suppress(httpx.TransportError):
            return self._client.get("/-/ready").status_code == 200
        return False

    def targets(self) -> dict[str, str]:
        """Health by job."""
        active = self._client.get("/api/v1/targets").json()["data"]["activeTargets"]
        return {each["labels"]["job"]: each["health"] for each in active}

    def rules(self) -> dict[str, str]:
        """Health of each alert."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def ask(self, expression: str) -> list[dict[str, object]]:
        """The result of a query, which must be one that Prometheus takes."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        found: list[dict[str, object]] = answer["data"]["result"]
        return found

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._process.terminate()
        self._process.wait(END_S)


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {"usage": free_port(), "gateway": free_port()}


@pytest.fixture(scope="module")
def gateway(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway and the flow `usage`, each with a port for metrics."""
    needed("prometheus")
    home = tmp_path_factory.mktemp("headrace")
    with ExitStack() as stack:
        kafka = stack.enter_context(EmbeddedKafka())
        create_all_topics(kafka)
        stack.enter_context(
            RunningFlows(
                "usage",
                log=home / "usage.log",
                HEADRACE_KAFKA_BOOTSTRAP=kafka.bootstrap,
                HEADRACE_DATA_DIR=str(home / "usage"),
                HEADRACE_METRICS_PORT=str(ports["usage"]),
            )
        )
        running = RunningGateway(kafka.bootstrap, home / "gateway", HEADRACE_METRICS_PORT=str(ports["gateway"]))
        yield stack.enter_context(running)


@pytest.fixture(scope="module")
def prometheus(
    gateway: RunningGateway, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    gateway.ready().ask()
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), ports)
    try:
        yield server
    finally:
        server.close()


def test_it_reads_what_flows_and_gateway_expose(prometheus: Prometheus, ports: dict[str, int]) -> None:
    until(lambda: prometheus.targets() == dict.fromkeys(ports, "up"))
    until(lambda: prometheus.ask('sum(headrace_gateway_requests_total{job="gateway",status="202"})') != [])
    (answering,) = prometheus.ask('up{job="usage"}')
    assert answering["metric"] == {"__name__": "up", "job": "usage", "instance": f"127.0.0.1:{ports['usage']}"}


def test_its_alerts_are_evaluated(prometheus: Prometheus) -> None:
    until(lambda: prometheus.rules() == {rule["alert"]: "ok" for rule in rules()})


def test_it_answers_every_query_of_the_dashboards(prometheus: Prometheus) -> None:
    for expression in every_expression():
        prometheus.ask(expression)


def test_dashboards_show_a_gateway_that_is_asked(prometheus: Prometheus) -> None:
    (operation,) = (each for each in DASHBOARDS if each.stem == "operation")
    queries = {title: expression for title, expression, _ in targets(operation)}
    until(lambda: prometheus.ask(queries["Processes that answer"]) != [])
    until(lambda: prometheus.ask(queries["Requests"]) != [])


def test_dashboards_show_a_flow_that_runs(prometheus: Prometheus) -> None:
    (operation,) = (each for each in DASHBOARDS if each.stem == "operation")
    queries = {title: expression for title, expression, _ in targets(operation)}
    for title in ("Lag", "Epochs, median and 95th percentile", "Size of snapshots", "Releases", "Memory"):
        until(lambda: prometheus.ask(queries[title]) != [])  # noqa: B023  # asked at once
    assert prometheus.ask(queries["Releases"])[0]["metric"] == {"flow": "usage", "version": version("headrace")}


def healthy(command: list[str], **variables: str) -> bool:
    program = [sys.executable, *command[1:]]
    return subprocess.run(program, env=os.environ | variables, capture_output=True, check=False).returncode == 0


def test_the_health_check_of_the_image_finds_whether_a_process_answers(
    gateway: RunningGateway, ports: dict[str, int]
) -> None:
    assert gateway.process.poll() is None
    for port in ports.values():
        assert healthy(health_check(), HEADRACE_METRICS_PORT=str(port))
    assert not healthy(health_check(), HEADRACE_METRICS_PORT=str(free_port()))


def test_the_health_checks_of_compose_find_whether_a_service_is_ready(
    gateway: RunningGateway, ports: dict[str, int]
) -> None:
    services = compose()["services"]
    gateway.ready()
    listening = gateway.url.rpartition(":")[2]
    for name, there, here in (("usage", "9464", str(ports["usage"])), ("gateway", "8080", listening)):
        command = services[name]["healthcheck"]["test"]
        assert command[0] == "CMD"
        until(lambda: healthy([word.replace(there, here) for word in command[1:]]))  # noqa: B023  # run at once
        assert not healthy([word.replace(there, str(free_port())) for word in command[1:]])
