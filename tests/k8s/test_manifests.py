"""Every overlay renders, every object is what its API takes, and pods have no more rights than they need."""

import json
import subprocess
import sys
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]  # it publishes no types
import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.k8s.rendering import K8S, OVERLAYS, ROOT, Manifest, of_kind, ours, pod_templates, rendered

VERSIONS = ("1.28", kubernetes_validate.latest_version())  # the oldest that k8s/README.md names, and the newest
GROUPS = frozenset({"kafka.strimzi.io", "monitoring.coreos.com", "keda.sh"})  # of custom resources
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "crds").glob("*.json")}
BASES = sorted(path.parent.name for path in K8S.glob("base/*/kustomization.yaml") if path.parent.name != "flow")

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def fault(manifest: Manifest) -> str:
    """What the API would not take, or nothing."""
    if manifest["apiVersion"].partition("/")[0] in GROUPS:
        errors = Draft202012Validator(SCHEMAS[manifest["kind"]]).iter_errors(manifest)
        return "; ".join(error.message for error in errors)
    try:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return str(error)
    return ""


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


@overlays
def test_every_object_is_valid(overlay: str) -> None:
    faults = {name_of(each): fault(each) for each in rendered(f"overlays/{overlay}")}
    assert {name: found for name, found in faults.items() if found} == {}


def test_every_base_is_valid() -> None:
    assert BASES
    for base in BASES:
        assert [found for each in rendered(f"base/{base}") if (found := fault(each))] == []


def test_an_unknown_field_is_found() -> None:
    for kind in ("StatefulSet", "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ScaledObject", "KafkaTopic"):
        manifest = json.loads(json.dumps(of_kind(rendered("overlays/gpu"), kind)[0]))
        assert fault(manifest) == ""
        manifest["spec"]["replica"] = 1
        assert "replica" in fault(manifest)


@overlays
def test_pods_are_as_restricted_as_the_namespace_demands(overlay: str) -> None:
    """Pod Security Standards, `restricted`; a read-only root besides, for what is ours."""
    manifests = rendered(f"overlays/{overlay}")
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload, template in pod_templates(manifests):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name_of(workload)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"]["runAsUser"] >= 100
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
    for _, container in ours(manifests):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108  # the container's


@overlays
def test_every_container_has_a_memory_limit_and_requests(overlay: str) -> None:
    for _, template in pod_templates(rendered(f"overlays/{overlay}")):
        for container in template["spec"]["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


@overlays
def test_volumes_are_not_opened_to_the_group_at_each_start(overlay: str) -> None:
    """Kubernetes would, with its default: a flow then refuses its recovery directory."""
    for _, template in pod_templates(rendered(f"overlays/{overlay}")):
        context = template["spec"]["securityContext"]
        if "fsGroup" in context:
            assert context["fsGroupChangePolicy"] == "OnRootMismatch"


@overlays
def test_secrets_are_mounted_and_never_in_a_variable(overlay: str) -> None:
    for workload, container in ours(rendered(f"overlays/{overlay}")):
        for variable in container.get("env", []):
            assert "secretKeyRef" not in variable.get("valueFrom", {}), name_of(workload)
            secret = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "API_KEY"))
            assert not secret or variable["name"].endswith("_FILE"), variable["name"]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for variable in container.get("env", []):
            if variable["name"].endswith("_FILE") or variable["name"].endswith("_CA"):
                assert any(variable["value"].startswith(f"{mount}/") for mount in mounts), variable["name"]


@overlays
def test_only_the_overlay_for_one_machine_holds_secrets(overlay: str) -> None:
    secrets = of_kind(rendered(f"overlays/{overlay}"), "Secret")
    assert bool(secrets) == (overlay == "local")


@overlays
def test_every_mounted_volume_exists(overlay: str) -> None:
    for workload, template in pod_templates(rendered(f"overlays/{overlay}")):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


@overlays
def test_nothing_is_reached_that_no_policy_names(overlay: str) -> None:
    policies = {
        each["metadata"]["name"]: each["spec"] for each in of_kind(rendered(f"overlays/{overlay}"), "NetworkPolicy")
    }
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    selectable = [template["metadata"]["labels"] for _, template in pod_templates(rendered(f"overlays/{overlay}"))]
    for name, policy in policies.items():
        wanted = policy["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= labels.items() for labels in selectable), f"{name} selects no pod"
    clients = {label for labels in selectable for label in labels if label.endswith("-client")}
    assert {f"to-{client.removesuffix('-client')}" for client in clients} <= policies.keys()


@overlays
def test_the_port_between_the_processes_of_a_flow_is_open_to_them_alone(overlay: str) -> None:
    manifests = rendered(f"overlays/{overlay}")
    policies = of_kind(manifests, "NetworkPolicy")
    for flow in (
        each["metadata"]["name"]
        for each in of_kind(manifests, "StatefulSet")
        if "flow" in each["metadata"].get("labels", {})
    ):
        peers = [
            (rule["from"], rule["ports"])
            for policy in policies
            if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= {"flow": flow}.items()
            for rule in policy["spec"].get("ingress", [])
            if policy["spec"]["podSelector"]
        ]
        assert peers == [
            ([{"podSelector": {"matchLabels": {"flow": flow}}}], [{"protocol": "TCP", "port": 9700}]),
        ]
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert rule.get("ports"), f"{policy['metadata']['name']} opens every port"
            if 9700 in [port["port"] for port in rule["ports"]]:
                assert policy["metadata"]["name"].endswith("-cluster")


def test_what_is_generated_is_fresh() -> None:
    """`make manifests` writes it."""
    exported = subprocess.run(
        [sys.executable, "-m", "cli.main", "topics", "export", "--format", "strimzi"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (K8S / "base/strimzi/kafkatopics.yaml").read_text() == exported
    rules = yaml.safe_load((K8S / "base/monitoring/rules.yml").read_text())
    assert yaml.safe_load((K8S / "base/monitoring/prometheusrule.yaml").read_text())["spec"] == rules
