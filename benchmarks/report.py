"""What every benchmark prints: one JSON object with the figures, and with what they were measured on."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import click

PACKAGES = ("headrace", "bytewax", "confluent-kafka", "aiohttp", "pydantic")


@dataclass(frozen=True)
class Aim:
    """What a figure should be, as a person would say it, and whether it is."""

    figure: str
    aim: str
    met: bool


def hardware() -> dict[str, object]:
    """The machine, as far as it decides figures."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", "unknown"),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "amx": "amx_bf16" in flags,
        "gpu": _gpu(),
    }


def commit() -> str | None:
    """Of this checkout, "-dirty" if files differ from it; None outside one."""
    tool = shutil.which("git")
    command = [tool or "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False) if tool else None  # noqa: S603  # found on the PATH
    return None if found is None or found.returncode else found.stdout.strip()


def _gpu() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # found on the PATH
    return found.stdout.strip() or None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent of the sorted ones do not exceed; 0 if there are none."""
    return ordered[max(math.ceil(len(ordered) * share / 100) - 1, 0)] if ordered else 0.0


def emit(bench: str, figures: Mapping[str, object], aims: Sequence[Aim], *, as_json: bool) -> None:
    """Print a benchmark's result: as one JSON object, or as lines for people."""
    if as_json:
        versions = {"python": python_version()} | {name: version(name) for name in PACKAGES}
        report = {
            "bench": bench,
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions,
            "figures": dict(figures),
            "aims": [asdict(aim) for aim in aims],
        }
        click.echo(json.dumps(report))
        return
    for name, value in figures.items():
        click.echo(f"{name:32} {value}")
    for aim in aims:
        click.echo(f"{'met' if aim.met else 'NOT MET':8} {aim.figure}: {aim.aim}")
