"""`headrace dev kafka`: the embedded broker alone, for trying things out."""

import signal
from threading import Event

import click

from connectors.kafka.embedded import EmbeddedKafka
from schemas.topics import CATALOGUE, dead_letter_topics


@click.group()
def dev() -> None:
    """Parts for development."""


@dev.command()
def kafka() -> None:
    """Run the embedded Kafka until Ctrl-C; everything in it is gone then."""
    ended = Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with EmbeddedKafka() as broker:
        broker.create_topics([topic.name for topic in (*CATALOGUE, *dead_letter_topics())])
        click.echo(f"export HEADRACE_KAFKA_BOOTSTRAP={broker.bootstrap}")
        click.echo(
            "In memory, about 5 MB a partition: beyond that the oldest unconsumed messages vanish. Ctrl-C ends it."
        )
        try:
            while not ended.wait(0.2):
                pass
        except KeyboardInterrupt:
            pass
