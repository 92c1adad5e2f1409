"""What the README shows is what the code does: its tables, its graph, its flow, its commands."""

import re
import subprocess
from pathlib import Path

import pytest

from connectors.settings import settings_table
from schemas.export import topic_table
from tests.headrace_process import headrace

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_topic_table_is_the_catalogue() -> None:
    assert topic_table() in README


def test_the_settings_table_is_the_model() -> None:
    assert settings_table() in README


def test_the_graph_is_what_the_command_prints() -> None:
    assert f"```mermaid\n{headrace('run', 'ingest', '--graph').stdout}```" in README


def test_the_flow_is_the_flow_file() -> None:
    (shown,) = re.findall(r"```python\n(flow = .*?)```", README, re.DOTALL)
    code = (ROOT / "flows" / "ingest.py").read_text(encoding="utf-8")
    assert all(f"    {line}\n" in code for line in shown.splitlines())


@pytest.mark.parametrize(
    "command",
    sorted(set(re.findall(r"headrace ((?:submit |topics |schemas |dlq |jobs |bench |reviews |keys )?[a-z]+)", README))),
)
def test_every_command_named_exists(command: str) -> None:
    if command.split(maxsplit=1)[0] in {
        "run",
        "submit",
        "topics",
        "schemas",
        "demo",
        "up",
        "dev",
        "dlq",
        "jobs",
        "bench",
        "reviews",
        "usage",
        "gateway",
        "keys",
    }:
        assert headrace(*command.split(), "--help").returncode == 0


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"`make ([a-z-]+)`|\$ make ([a-z-]+)", README))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in {one or other for one, other in targets}:
        assert f"make {target}" in listed


def test_every_linked_file_and_section_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", README, re.MULTILINE)}
    assert links
    assert all(link[1:] in headings if link.startswith("#") else (ROOT / link).exists() for link in links)
