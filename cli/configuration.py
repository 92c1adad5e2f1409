"""Settings for commands: a bad one is a usage error, and options of the command override variables."""

from collections.abc import Mapping

import click

from connectors.settings import KAFKA_VARIABLES, Settings, load


def settings_for(**overrides: object) -> Settings:
    """The settings, with the given fields replaced where they are not None; exits 2 with one line if one is wrong."""
    try:
        settings = load()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return settings.model_copy(update={name: value for name, value in overrides.items() if value is not None})


def bootstrap_of(settings: Settings) -> str:
    """The brokers; exits 2 if none are named, or librdkafka refuses how to connect to them."""
    if settings.kafka_bootstrap is None:
        raise click.UsageError(
            "HEADRACE_KAFKA_BOOTSTRAP is missing: set it to host:port of a broker, or pass --bootstrap; "
            "`headrace up` starts an embedded one"
        )
    if config := settings.kafka_config():
        _check(config)
    return settings.kafka_bootstrap


def _check(config: Mapping[str, str]) -> None:
    from confluent_kafka import KafkaException, Producer

    from connectors.kafka.client import cause

    try:
        Producer({"log_level": 0, **config})  # without an address: it asks nobody
    except KafkaException as error:
        said = cause(error).str()  # names the setting, not its value
        named = [variable for name, variable in KAFKA_VARIABLES.items() if name in said and name in config]
        if "ssl.key.location" in said:  # what OpenSSL says of a wrong password, and of a missing one
            named.append(KAFKA_VARIABLES["ssl.key.password"])
        raise click.UsageError(f"{' or '.join(named) or 'HEADRACE_KAFKA_OPTIONS'}: {said}") from error
