"""`headrace up`: everything local, until Ctrl-C."""

import time
from pathlib import Path

import click

from cli.configuration import settings_for
from cli.local import LocalStack, obey_signals


@click.command()
@click.option(
    "--documents",
    "roots",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    default=(Path(),),
    show_default="the current directory",
    help="Directory whose files may be submitted; may be repeated.",
)
def up(roots: tuple[Path, ...]) -> None:
    """Start an embedded Kafka and the fused flows, print how to submit, and stay until Ctrl-C.

    The vector index stays in HEADRACE_DATA_DIR; what is still in Kafka is gone afterwards.
    """
    settings = settings_for()
    obey_signals()
    with LocalStack(settings.data_dir, file_roots=roots, drain_s=settings.drain_s) as stack:
        click.echo(
            f"Kafka (embedded, in memory) is at {stack.bootstrap}; flows: ingest, answer; their log: {stack.log}\n"
            "\n"
            "In another terminal:\n"
            "\n"
            f"  export HEADRACE_KAFKA_BOOTSTRAP={stack.bootstrap}\n"
            "  headrace submit documents PATH...\n"
            '  headrace submit request "..."\n'
            "\n"
            "Ctrl-C ends it."
        )
        try:
            while True:
                time.sleep(0.2)
                stack.check()
        except KeyboardInterrupt:
            pass
        click.echo(f"Ending: pending work gets {settings.drain_s:.0f} s ...")
