"""The Dockerfile: what can be said of it where no engine can build it."""

import json
import re
import subprocess
import tomllib

from tests.k8s.rendering import ROOT, needed

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    """What follows each instruction of that name, lines joined."""
    joined = re.sub(r"\\\n(?:\s*#.*\n)*\s*", " ", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


def health_check() -> list[str]:
    """The command that says whether a container is well."""
    (options,) = instructions("HEALTHCHECK")
    command: list[str] = json.loads(options.partition("CMD ")[2])
    return command


def test_the_linter_has_no_complaint() -> None:
    result = subprocess.run([needed("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_everything_that_is_copied_exists_and_is_sent_to_the_engine() -> None:
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sources
    assert set(sources) == admitted
    assert [each for each in sources if not (ROOT / each).exists()] == []


def test_every_package_of_the_project_is_copied() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {f"{package} {package}" for package in packages} <= set(instructions("COPY"))
    assert f"mkdir {' '.join(packages)} " in " ".join(instructions("RUN"))


def test_what_is_installed_is_locked_and_has_every_extra() -> None:
    (installed,) = re.findall(r"pip install --constraint requirements\.lock '\.\[([a-z0-9,]+)\]'", DOCKERFILE)
    assert set(installed.split(",")) == PROJECT["project"]["optional-dependencies"].keys()


def test_both_variants_are_there_and_no_other() -> None:
    (choice,) = (run for run in instructions("RUN") if "$VARIANT" in run)
    assert re.findall(r"(\w+|\*)\)", choice) == ["cpu", "cuda", "*"]


def test_it_runs_as_nobody_in_particular() -> None:
    assert instructions("USER") == ["10001:10001"]  # numbers, so that Kubernetes sees that it is not root


def test_it_is_the_command() -> None:
    assert json.loads(instructions("ENTRYPOINT")[0])[-1] == "headrace"


def test_images_have_a_tag_and_no_digest() -> None:
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", DOCKERFILE, re.MULTILINE)
    name, _, tag = image.partition(":")
    assert name == "python"
    assert "@" not in tag
    low, high = re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"])
    assert int(low) <= int(re.findall(r"^3\.(\d+)-", tag)[0]) < int(high)
