"""The `headrace` command. Groups are imported when they are used, so that `--help` answers at once."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import click

from schemas.errors import HeadraceError

COMMANDS = {
    "bench": "cli.bench:bench",
    "demo": "cli.demo:demo",
    "dev": "cli.dev:dev",
    "dlq": "cli.dlq:dlq",
    "gateway": "cli.gateway:gateway",
    "jobs": "cli.jobs:jobs",
    "keys": "cli.keys:keys",
    "reindex": "cli.reindex:reindex",
    "reviews": "cli.reviews:reviews",
    "run": "cli.run:run",
    "schemas": "cli.schemas:schemas",
    "submit": "cli.submit:submit",
    "topics": "cli.topics:topics",
    "up": "cli.up:up",
    "usage": "cli.usage:usage",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own: `commands_at` has `module:name` by command."""

    def __init__(self, name: str | None = None, *, commands_at: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names."""
        del ctx
        return sorted(self._commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        place = self._commands_at.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(_imported(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{place} is no click command")
        return command


def _imported(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"benchmarks", "tests"}:
            raise
        raise HeadraceError(
            "benchmarks need a checkout of Headrace, with its tests: run this in its top folder, after `make setup`"
        ) from error


@click.group(cls=LazyGroup, commands_at=COMMANDS)
@click.version_option(package_name="headrace")
def headrace() -> None:
    """Run slow model work as event-driven dataflows over Kafka."""


def main() -> None:
    """Entry point: errors are one clear line; exit 2 for a usage error, 1 for a failure."""
    try:
        headrace(prog_name="headrace")
    except HeadraceError as error:
        click.echo(f"headrace: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
