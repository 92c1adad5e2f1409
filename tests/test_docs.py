"""The pages beside the README name what is there: files, targets, settings."""

import re
import subprocess
from pathlib import Path

import pytest

from connectors.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

EXAMPLES = {
    "tests/operators/test_measure.py",
    "tests/flows/test_measure.py",
    "operators/measure.py",
    "flows/measure.py",
}
"""What CONTRIBUTING has its reader write."""


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_every_linked_file_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


def test_every_named_file_exists(page: Path) -> None:
    named = re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+(?:\.[a-z]+)?)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if name not in EXAMPLES and not (ROOT / name).exists()] == []


def test_every_named_target_exists(page: Path) -> None:
    targets = set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in targets if f"make {target} " not in listed] == []


def test_every_named_setting_exists(page: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", page.read_text(encoding="utf-8")))
    known = {f"{PREFIX}{field}".upper() for field in Settings.model_fields}
    assert [name for name in named if name.removesuffix("_FILE") not in known] == []
