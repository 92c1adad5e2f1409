"""Manifests and docker-compose.yml say what the code understands: settings, commands, topics, ports, paths, images."""

import base64
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree as ET

import click
import pytest
from fastapi import FastAPI

from cli.main import headrace
from cli.metrics import ROUTES
from cli.wiring import FLOWS
from connectors.settings import PREFIX, Settings
from gateway.app import create_app
from gateway.keys import Keys, digest_of
from gateway.parts import Limits
from schemas.documents import DocumentExtracted
from schemas.topics import topic_of
from tests.k8s.rendering import (
    FROM_FIELD,
    K8S,
    OVERLAYS,
    ROOT,
    TOPICS,
    Manifest,
    compose,
    environment,
    of_kind,
    ours,
    rendered,
)

DEVELOPMENT_KEY = "hr_for-development-only"
METRICS_PORT = 9464
GATEWAY_PORT = 8080
CLUSTER_PORT = 9700
CLOSING_S = 30.0  # what connectors get to close, once the drain is over

MOUNTED = {
    "HEADRACE_API_KEYS_FILE": json.dumps({digest_of("hr_x"): "*"}),
    "HEADRACE_WEBHOOK_SECRETS_FILE": json.dumps({"*": "whsec_Zm9yLWRldmVsb3BtZW50LW9ubHktMDEyMzQ1Njc="}),
}

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def settings_of(variables: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each of our variables, with the field of Settings that it sets."""
    for name in variables:
        if name.startswith(PREFIX):
            field = name.removeprefix(PREFIX).lower()
            secret = field.removesuffix("_file") if field.endswith("_file") else field
            yield name, field if field in Settings.model_fields else secret


def unknown(variables: dict[str, str]) -> list[str]:
    return [name for name, field in settings_of(variables) if field not in Settings.model_fields]


def parse(arguments: list[str]) -> list[str]:
    """The flows that a command line of `headrace` runs. Raises click.UsageError if it does not understand it."""
    command: click.Command = headrace
    rest = arguments
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, rest[0]
        command, rest = found, rest[1:]
    context = command.make_context(command.name, rest.copy())
    return list(context.params.get("flows", ()))


def containers_of_compose() -> dict[str, Manifest]:
    """The services that run our image."""
    return {name: service for name, service in compose()["services"].items() if service["image"].startswith("headrace")}


@overlays
def test_every_variable_is_a_setting(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    for workload, container in ours(manifests):
        assert unknown(environment(container, manifests)) == [], workload["metadata"]["name"]


def test_every_variable_of_compose_and_image_is_a_setting() -> None:
    for name, service in containers_of_compose().items():
        assert unknown(service.get("environment", {})) == [], name
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert unknown(dict.fromkeys(re.findall(r"\b(HEADRACE_[A-Z_]+)=", dockerfile), "")) == []


@overlays
def test_every_value_is_one_that_its_setting_takes(
    overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With files of the kind that is mounted."""
    manifests = rendered(f"overlays/{overlay}")
    for _, container in ours(manifests):
        with monkeypatch.context() as patched:
            for name, value in environment(container, manifests).items():
                if value.startswith("/run/secrets/"):
                    (tmp_path / name).write_text(MOUNTED.get(name, "secret"))
                    patched.setenv(name, str(tmp_path / name))
                else:
                    patched.setenv(name, "0" if value == FROM_FIELD else value)
            assert Settings()


def test_every_value_of_compose_is_one_that_its_setting_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in containers_of_compose().values():
        with monkeypatch.context() as patched:
            for name, value in service.get("environment", {}).items():
                patched.setenv(name, value)
            assert Settings()


@overlays
def test_every_command_is_one_that_the_cli_understands(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    ran = [flow for _, container in ours(manifests) for flow in parse(container["args"])]
    assert set(ran) <= set(FLOWS)
    assert len(ran) == len(set(ran)), "a flow runs twice"
    assert "ingest" in ran or {"extract", "embed", "index"} <= set(ran)
    assert not ({"extract", "embed", "index"} & set(ran) and "ingest" in ran), "either fused or split"


def test_every_flow_has_a_base() -> None:
    for flow in FLOWS:
        ((_, container),) = ours(rendered(f"base/{flow}"))
        assert parse(container["args"]) == [flow]


def test_every_command_of_compose_is_one_that_the_cli_understands() -> None:
    for name, service in containers_of_compose().items():
        flows = parse(service["command"])
        assert not flows or name.startswith(flows[0])


def test_flows_of_compose_that_share_state_are_the_same_flow() -> None:
    by_volume: dict[str, set[str]] = {}
    for service in containers_of_compose().values():
        for volume in service.get("volumes", []):
            if volume["target"] == "/data":
                by_volume.setdefault(volume["source"], set()).add(shlex.join(service["command"]))
    assert all(len(commands) == 1 for commands in by_volume.values()), by_volume


@overlays
def test_a_cluster_lists_as_many_processes_as_there_are_pods(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    for workload, container in ours(manifests):
        variables = environment(container, manifests)
        replicas = workload["spec"].get("replicas", 1)
        name = workload["metadata"]["name"]
        if f"{PREFIX}CLUSTER" in variables:
            assert variables[f"{PREFIX}CLUSTER"].split(",") == [
                f"{name}-{ordinal}.{workload['spec']['serviceName']}.headrace.svc.cluster.local:{CLUSTER_PORT}"
                for ordinal in range(replicas)
            ]
            assert {"name": "cluster", "containerPort": CLUSTER_PORT} in container["ports"]
            assert workload["spec"]["podManagementPolicy"] == "Parallel"
            assert workload["spec"]["updateStrategy"] == {"type": "OnDelete"}, "its processes run the same release"
            assert ordinal_of(container, "CLUSTER_PROCESS")
            (service,) = (each for each in of_kind(manifests, "Service") if each["metadata"]["name"] == name)
            assert service["spec"]["publishNotReadyAddresses"] is True
            assert service["spec"]["clusterIP"] == "None"
        elif f"{PREFIX}SLICES" in variables:
            assert int(variables[f"{PREFIX}SLICES"]) == replicas
            assert ordinal_of(container, "SLICE")
        elif workload["kind"] == "StatefulSet":
            assert replicas == 1, f"{name}: two processes that know nothing of each other would do all work twice"


def ordinal_of(container: Manifest, variable: str) -> bool:
    (each,) = (each for each in container["env"] if each["name"] == f"{PREFIX}{variable}")
    path: str = each["valueFrom"]["fieldRef"]["fieldPath"]
    return path == "metadata.labels['apps.kubernetes.io/pod-index']"


def test_production_shows_a_cluster_and_slices() -> None:
    manifests = rendered("overlays/production")
    variables = [environment(container, manifests) for _, container in ours(manifests)]
    assert any(f"{PREFIX}CLUSTER" in each for each in variables)
    assert any(f"{PREFIX}SLICES" in each for each in variables)


@overlays
def test_pods_get_the_time_that_a_flow_needs_to_stop(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    for workload, container in ours(manifests):
        if workload["kind"] == "StatefulSet":
            grace_s = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace_s > float(environment(container, manifests)["HEADRACE_DRAIN_S"]) + CLOSING_S


def test_compose_gives_them_that_time_too() -> None:
    for name, service in containers_of_compose().items():
        if name not in {"topics", "gateway"}:
            minutes = int(service["stop_grace_period"].partition("m")[0])
            assert minutes * 60 > float(service["environment"]["HEADRACE_DRAIN_S"]) + CLOSING_S


@overlays
def test_topics_are_the_catalogue(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    topics = {each["spec"]["topicName"]: each for each in of_kind(manifests, "KafkaTopic")}
    makes_them = ["topics", "create"] in [container["args"][:2] for _, container in ours(manifests)]
    assert makes_them != bool(topics), "either a job makes the topics, or Strimzi"
    if not topics:
        return
    assert topics.keys() == TOPICS.keys()
    for name, topic in topics.items():
        assert TOPICS[name].config.items() <= topic["spec"]["config"].items()
        assert topic["spec"]["config"]["min.insync.replicas"] == "2"
        assert topic["metadata"]["namespace"] == "kafka"
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", topic["metadata"]["name"])


@pytest.fixture
def app() -> FastAPI:
    return create_app(Mock(keys=Keys({}), limits=Limits()))


@overlays
def test_probes_ask_where_something_answers(overlay: str, app: FastAPI) -> None:
    routes = {getattr(route, "path", None) for route in app.routes} | set(app.openapi()["paths"])
    for workload, container in ours(rendered(f"overlays/{overlay}")):
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        probes = [
            container[probe] for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in container
        ]
        assert len(probes) == (0 if workload["kind"] == "Job" else 3)
        for probe in probes:
            path, port = probe["httpGet"]["path"], ports[probe["httpGet"]["port"]]
            if port == GATEWAY_PORT:
                assert path in routes
            else:
                assert port == METRICS_PORT
                assert path in ROUTES


def test_health_checks_of_compose_ask_where_something_answers(app: FastAPI) -> None:
    routes = set(app.openapi()["paths"])
    for name, service in containers_of_compose().items():
        asked = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", " ".join(service["healthcheck"].get("test", [])))
        if name == "topics":
            assert service["healthcheck"] == {"disable": True}
        elif name == "gateway":
            assert asked == [(str(GATEWAY_PORT), "/readyz")]
            assert "/readyz" in routes
        else:
            assert asked == [(service["environment"]["HEADRACE_METRICS_PORT"], "/readyz")]


@overlays
def test_ports_are_those_that_processes_listen_at(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    for workload, container in ours(manifests):
        variables = environment(container, manifests)
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        if workload["kind"] != "Job":
            assert ports["metrics"] == int(variables["HEADRACE_METRICS_PORT"]) == METRICS_PORT
        if container["args"] == ["gateway"]:
            assert ports["http"] == int(variables["HEADRACE_GATEWAY_PORT"]) == GATEWAY_PORT
            assert variables["HEADRACE_GATEWAY_HOST"] == "0.0.0.0"  # noqa: S104  # with keys
            assert "HEADRACE_API_KEYS_FILE" in variables
    for service in of_kind(manifests, "Service"):
        selected = service["spec"]["selector"]
        (target,) = (
            workload["spec"]["template"]
            for workload in of_kind(manifests, "StatefulSet", "Deployment")
            if selected.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        )
        named = {port["name"] for container in target["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@overlays
def test_neighbours_are_reached_at_the_ports_that_policies_open(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "NetworkPolicy")}
    for workload, container in ours(manifests):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        variables = environment(container, manifests)
        for variable, client in (("KAFKA_BOOTSTRAP", "kafka"), ("QDRANT_URL", "qdrant"), ("LEDGER", "postgres")):
            if f"{client}-client" in labels:
                (port,) = re.findall(r":(\d+)\b", variables[f"{PREFIX}{variable}"])
                opened = [each["port"] for rule in policies[f"to-{client}"]["egress"] for each in rule["ports"]]
                assert int(port) in opened


@pytest.mark.parametrize("overlay", ["production", "gpu"])
def test_prometheus_finds_every_process_and_calls_it_by_its_flow(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    (monitor,) = of_kind(manifests, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    services = {each["metadata"]["name"]: each for each in of_kind(manifests, "Service")}
    for workload in of_kind(manifests, "StatefulSet", "Deployment"):
        service = services[workload["metadata"]["name"]]
        labels = service["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels[monitor["spec"]["jobLabel"]] == workload["metadata"]["name"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_autoscaler_watches_what_the_flow_commits_and_what_it_has_in_hand() -> None:
    manifests = rendered("overlays/gpu")
    (scaled,) = of_kind(manifests, "ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]
    (workload,) = (each for each in of_kind(manifests, target["kind"]) if each["metadata"]["name"] == target["name"])
    assert "replicas" not in workload["spec"], "two would say how many there are"
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (0, 1)
    (container,) = (container for each, container in ours(manifests) if each is workload)
    (flow,) = parse(container["args"])
    variables = environment(container, manifests)
    by_type = {trigger["type"]: trigger["metadata"] for trigger in scaled["spec"]["triggers"]}
    assert by_type["kafka"]["consumerGroup"] == f"{Settings().group_prefix}.{flow}"
    assert by_type["kafka"]["bootstrapServers"].replace(".svc", "") == variables["HEADRACE_KAFKA_BOOTSTRAP"]
    assert f'job="{flow}"' in by_type["prometheus"]["query"]
    assert by_type["kafka"]["topic"] == topic_of(DocumentExtracted).name


def test_the_embedding_model_runs_on_a_gpu() -> None:
    manifests = rendered("overlays/gpu")
    (embed,) = (container for workload, container in ours(manifests) if workload["metadata"]["name"] == "embed")
    assert embed["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "headrace-cuda" in embed["image"]


def test_development_keys_are_those_that_are_documented() -> None:
    digest = digest_of(DEVELOPMENT_KEY)
    services = compose()["services"]
    assert json.loads(services["gateway"]["environment"]["HEADRACE_API_KEYS"]) == {digest: "*"}
    assert DEVELOPMENT_KEY in (ROOT / "docker-compose.yml").read_text()
    secrets = {each["metadata"]["name"]: each for each in of_kind(rendered("overlays/local"), "Secret")}
    (keys,) = (each["data"]["api-keys.json"] for name, each in secrets.items() if name.startswith("gateway-"))
    assert json.loads(base64.b64decode(keys)) == {digest: "*"}
    assert DEVELOPMENT_KEY in (K8S / "README.md").read_text()


def test_the_broker_is_the_one_that_tests_run_against() -> None:
    pom = ET.parse(ROOT / "tests/kafka/pom.xml").getroot()  # noqa: S314  # our own
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    versions = {
        each.findtext("m:artifactId", namespaces=space): each.findtext("m:version", namespaces=space)
        for each in pom.iterfind(".//m:dependency", space)
    }
    image = f"apache/kafka:{versions['kafka_2.13']}"
    assert compose()["services"]["kafka"]["image"] == image
    (kafka,) = (
        each for each in of_kind(rendered("overlays/local"), "StatefulSet") if each["metadata"]["name"] == "kafka"
    )
    assert kafka["spec"]["template"]["spec"]["containers"][0]["image"] == image


@overlays
def test_images_are_named_once_and_never_latest(overlay: str) -> None:
    for workload, container in ours(rendered(f"overlays/{overlay}")):
        image = container["image"]
        assert image.rpartition(":")[2] not in {"", "latest", image}, workload["metadata"]["name"]
    for service in compose()["services"].values():
        assert service["image"].rpartition(":")[2] not in {"", "latest"}


def test_production_and_its_readme_name_the_same_secrets() -> None:
    readme = (K8S / "README.md").read_text()
    for overlay in ("production", "gpu"):
        for workload in of_kind(rendered(f"overlays/{overlay}"), "StatefulSet", "Deployment"):
            for volume in workload["spec"]["template"]["spec"]["volumes"]:
                if "secret" in volume:
                    assert f"create secret generic {volume['secret']['secretName']} " in readme
