"""`headrace schemas export|check`: the published contract, and whether the code still keeps it."""

import json
from pathlib import Path

import click

import schemas as package
from schemas.compatibility import Schema, breaking_changes
from schemas.errors import HeadraceError
from schemas.export import files

COMMITTED = Path(package.__file__ or "").parent / "snapshots"
ASYNCAPI = "asyncapi.json"

_RESTORE = "restore it from version control"


@click.group()
def schemas() -> None:
    """The JSON Schemas of all events."""


@schemas.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=COMMITTED,
    show_default="schemas/snapshots",
    help="Where to write; made if missing.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object of all documents instead of writing files."
)
def export(directory: Path, *, as_json: bool) -> None:
    """Write a JSON Schema for each event, and an AsyncAPI 3 document of all topics."""
    documents = files()
    if as_json:
        click.echo(json.dumps({name: json.loads(text) for name, text in documents.items()}))
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in documents.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise HeadraceError(f"cannot write to {directory} ({error.strerror}); name another with --directory") from error
    click.echo(f"wrote {len(documents)} files to {directory}")


@schemas.command()
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=COMMITTED,
    show_default="schemas/snapshots",
    help="The committed copies.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(against: Path, *, as_json: bool) -> None:
    """Compare the code's events with their committed JSON Schemas; exit 1 if they differ.

    A breaking change is reported field by field; a compatible one asks for a fresh export.
    """
    breaking, stale = compare(against)
    if as_json:
        click.echo(json.dumps({"breaking": breaking, "stale": stale}))
    else:
        for line in breaking:
            click.echo(line, err=True)
    if breaking:
        raise HeadraceError(f"{len(breaking)} breaking changes against {against}")
    if stale:
        raise HeadraceError(f"{', '.join(stale)} in {against} are stale; run `headrace schemas export` and commit them")
    if not as_json:
        click.echo(f"{len(files())} documents are as committed")


def compare(against: Path) -> tuple[list[str], list[str]]:
    """Breaking changes, one line each, and the names of files that are not as the code would write them."""
    breaking: list[str] = []
    stale: list[str] = []
    current = files()
    committed = {path.name: _read(path) for path in sorted(against.glob("*.json"))}
    for name, text in current.items():
        if committed.get(name) == text:
            continue
        stale.append(name)
        if name in committed and name != ASYNCAPI:
            changes = breaking_changes(_schema(against / name, committed[name]), json.loads(text))
            breaking += [f"{name.removesuffix('.json')}: {change}" for change in changes]
    for name in sorted(committed.keys() - current.keys()):
        stale.append(name)
        breaking.append(
            f"{name.removesuffix('.json')}: the event is gone; keep it until nobody produces or consumes it"
        )
    return breaking, stale


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeadraceError(f"cannot read {path} ({type(error).__name__}); {_RESTORE}") from error


def _schema(path: Path, text: str) -> Schema:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise HeadraceError(f"{path} is not JSON ({error}); {_RESTORE}") from error
    if not isinstance(document, dict):
        raise HeadraceError(f"{path} is not a JSON Schema; {_RESTORE}")
    return document
