"""The `headrace` command. Groups are imported when they are used, so that `--help` answers at once."""

import sys
from importlib import import_module

import click

from schemas.errors import HeadraceError

COMMANDS = {
    "demo": "cli.demo:demo",
    "dev": "cli.dev:dev",
    "run": "cli.run:run",
    "schemas": "cli.schemas:schemas",
    "submit": "cli.submit:submit",
    "topics": "cli.topics:topics",
    "up": "cli.up:up",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name]} is no click command")
        return command


@click.group(cls=LazyGroup)
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
