"""`headrace dev kafka`: the embedded broker alone, for trying things out."""

import signal
from contextlib import suppress

import click

from cli.local import obey_signals
from connectors.kafka.embedded import EmbeddedKafka
from schemas.topics import CATALOGUE, dead_letter_topics


@click.group()
def dev() -> None:
    """Parts for development."""


@dev.command()
def kafka() -> None:
    """Run the embedded Kafka until Ctrl-C; everything in it is gone then."""
    obey_signals()
    with EmbeddedKafka() as broker:
        broker.create_topics([topic.name for topic in (*CATALOGUE, *dead_letter_topics())])
        click.echo(f"export HEADRACE_KAFKA_BOOTSTRAP={broker.bootstrap}")
        click.echo(
            "In memory, about 5 MB a partition: beyond that the oldest unconsumed messages vanish. Ctrl-C ends it."
        )
        with suppress(KeyboardInterrupt):
            signal.pause()
