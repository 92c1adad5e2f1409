"""Headrace beside its peers: the same work, machine and run, each set up as its own documentation recommends."""

import importlib
import shutil
import tempfile
from pathlib import Path

import click

from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim, emit
from schemas.errors import HeadraceError
from tests.kafka.apache_kafka import missing_tools

SECTIONS = ("control", "ingestion", "inference", "growth", "soak")
OF_PEERS = SECTIONS[:3]


@click.command()
@click.option(
    "--section", "sections", multiple=True, type=click.Choice(SECTIONS), help=f"Default: {', '.join(OF_PEERS)}."
)
@click.option("--system", "systems", multiple=True, metavar="NAME", help="Only these; default: all of the section.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of control and ingestion.")
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(1), help="Of the soak.")
@click.option("--events", type=click.IntRange(100), help="Of control, and of growth's least size.")
@click.option("--quick", is_flag=True, help="Small sizes: shows that it works; the figures say nothing.")
@click.option("--keep", is_flag=True, help="Keep the directory with data and logs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def peers(  # options of a command
    sections: tuple[str, ...],
    systems: tuple[str, ...],
    rounds: int,
    minutes: float,
    events: int | None,
    *,
    quick: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Measure Headrace beside its peers (needs Java 17, Maven, redis-server, and PyPI the first time)."""
    missing = missing_tools()
    if missing is not None:
        raise HeadraceError(missing)
    chosen = tuple(dict.fromkeys(sections)) or OF_PEERS
    modules = {name: importlib.import_module(f"benchmarks.peers.{name}.measured") for name in chosen}
    known = {system for module in modules.values() for system in module.SYSTEMS}
    if unknown := set(systems) - known:
        raise click.UsageError(f"--system {', '.join(sorted(unknown))}: there are {', '.join(sorted(known))}")
    figures: dict[str, object] = {"quick": quick}
    aims: list[Aim] = []
    for name, module in modules.items():
        directory = Path(tempfile.mkdtemp(prefix=f"headrace-peers-{name}-"))

        def say(line: str, section: str = name) -> None:
            click.echo(f"{section}: {line}", err=True)

        say(f"data and logs in {directory}")
        try:
            found: Findings = module.measure(
                Request(frozenset(systems), quick, directory, say, rounds, minutes, events)
            )
        finally:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
        figures |= {f"{name}.{figure}": value for figure, value in found.figures.items()}
        aims += [Aim(f"{name}.{aim.figure}", aim.aim, met=aim.met) for aim in found.aims]
    emit("peers", figures, aims, as_json=as_json)
