"""`headrace up`: everything local, until Ctrl-C."""

import socket
import time
from pathlib import Path

import click

from cli.configuration import settings_for
from cli.local import LocalStack, obey_signals

FLOWS = ("ingest", "answer", "usage")


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
    """Start an embedded Kafka, the fused flows and a gateway with its console, and stay until Ctrl-C.

    The vector index stays in HEADRACE_DATA_DIR; what is still in Kafka is gone afterwards.
    """
    settings = settings_for()
    obey_signals()
    port = _free(settings.gateway_port)
    flows = (*FLOWS, "webhooks") if settings.webhook_secrets else FLOWS
    with LocalStack(
        settings.data_dir, file_roots=roots, drain_s=settings.drain_s, flows=flows, gateway_port=port
    ) as stack:
        click.echo(
            f"Console and API:  {stack.gateway_url}\n"
            f"Kafka (embedded, in memory):  {stack.bootstrap}\n"
            f"Flows:  {', '.join(flows)}; their log: {stack.log}\n"
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


def _free(port: int) -> int:
    """The port, or 0 for any if something listens there: two checkouts may be up at once."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return 0 if probe.connect_ex(("127.0.0.1", port)) == 0 else port
