"""`headrace topics`: make the catalogue on a broker, or print it for an operator that does."""

import json

import click

from cli.configuration import bootstrap_of, settings_for
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.strimzi import kafka_topics
from schemas.topics import CATALOGUE, dead_letter_topics


@click.group()
def topics() -> None:
    """The topic catalogue."""


@topics.command()
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option(
    "--partitions",
    default=16,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Partitions of each topic: the most processes that can share a flow's work.",
)
@click.option(
    "--replication-factor", default=-1, show_default="the broker's default", type=int, help="Copies of each partition."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create(bootstrap: str | None, partitions: int, replication_factor: int, *, as_json: bool) -> None:
    """Create the topics that are missing; report, and leave alone, those that differ."""
    settings = settings_for(kafka_bootstrap=bootstrap)
    specs = [TopicSpec(topic.name, partitions, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
    report = create_topics(
        bootstrap_of(settings), specs, settings.kafka_config(), replication_factor=replication_factor
    )
    if as_json:
        fields = {"created": report.created, "existing": report.existing, "differences": report.differences}
        click.echo(json.dumps(fields))
        return
    for name in report.created:
        click.echo(f"created   {name}")
    for name in report.existing:
        click.echo(f"exists    {name}")
    for line in report.differences:
        click.echo(f"differs   {line}")


@topics.command()
@click.option("--format", "form", required=True, type=click.Choice(["strimzi"]), help="Of what is printed.")
@click.option("--partitions", default=16, show_default=True, type=click.IntRange(1, 1024), help="Of each topic.")
@click.option("--replicas", default=3, show_default=True, type=click.IntRange(1, 32_767), help="Of each partition.")
def export(form: str, partitions: int, replicas: int) -> None:
    """Print the catalogue for those who make topics in another way: KafkaTopic resources for Strimzi's operator."""
    del form  # there is one
    click.echo(kafka_topics(partitions=partitions, replicas=replicas), nl=False)
