"""Manifests as `kubectl apply --kustomize` would send them, and what their containers run with."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.topics import CATALOGUE, dead_letter_topics

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "production", "gpu")
TOPICS = {topic.name: topic for topic in (*CATALOGUE, *dead_letter_topics())}

FROM_FIELD = "<field>"

Manifest = dict[str, Any]  # YAML


def needed(*programs: str) -> str:
    """The path of the first of these programs that there is. Without one, CI fails and others skip.

    Some come as Python packages: beside the interpreter, whose folder need not be on the PATH.
    """
    where = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for program in programs:
        found = shutil.which(program, path=where)
        if found is not None:
            return found
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{' or '.join(programs)} is not installed")
    raise AssertionError  # neither returns


@cache
def rendered(directory: str) -> list[Manifest]:
    """All objects of a folder below k8s/, as kustomize renders it. Not to be changed."""
    kustomize = needed("kustomize", "kubectl")
    command = [kustomize, "build"] if Path(kustomize).name == "kustomize" else [kustomize, "kustomize"]
    result = subprocess.run([*command, str(K8S / directory)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return [each for each in yaml.safe_load_all(result.stdout) if each is not None]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [each for each in manifests if each["kind"] in kinds]


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload, and the template of its pods."""
    for workload in of_kind(manifests, "StatefulSet", "Deployment", "Job"):
        yield workload, workload["spec"]["template"]


def ours(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload that runs our image, and its container."""
    for workload, template in pod_templates(manifests):
        for container in template["spec"]["containers"]:
            if container["name"] == "headrace":
                yield workload, container


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """The variables of a container; FROM_FIELD for those whose value comes from a field of its pod."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(manifests, "ConfigMap")}
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= maps[source["configMapRef"]["name"]]
    for each in container.get("env", []):
        variables[each["name"]] = each.get("value", FROM_FIELD)
    return variables


@cache
def compose() -> Manifest:
    """docker-compose.yml as Docker Compose reads it, with all profiles."""
    result = subprocess.run(
        [needed("docker-compose"), "--file", str(ROOT / "docker-compose.yml"), "--profile", "*", "config"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp")},  # noqa: S108  # no .env, no variables
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    read: Manifest = yaml.safe_load(result.stdout)
    return read
