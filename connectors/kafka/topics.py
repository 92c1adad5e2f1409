"""Topics from the outside: is the broker there, do the topics exist as they should, how far behind is a group."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names, not marked as exported
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from connectors.kafka.client import ConnectionErrors, base_config, cause, watermarks
from schemas.errors import Fatal, Retryable

_TRY_S = 2.5  # then it is asked whether a broker has refused us; one that is slow keeps its connection
_PAUSE_S = 0.1


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it should be."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)  # topic settings: "cleanup.policy", "retention.ms"


@dataclass(frozen=True)
class CreateReport:
    """What creating topics found and did, in the order of the specs."""

    created: tuple[str, ...]
    existing: tuple[str, ...]  # left as they are
    differences: tuple[str, ...]  # one line each: where an existing topic is not as specified


def ensure_reachable(bootstrap: str, config: Mapping[str, str] | None = None, *, timeout_s: float = 10.0) -> None:
    """Return when a broker answers.

    Raises Fatal, within three seconds, if one refuses us (password, certificate), and Retryable, saying why, if none
    answers within `timeout_s` seconds.
    """
    errors = ConnectionErrors("reachability check", quiet=True)
    _reach(_admin(bootstrap, config, errors), bootstrap, errors, timeout_s)


def create_topics(
    bootstrap: str,
    specs: Sequence[TopicSpec],
    config: Mapping[str, str] | None = None,
    *,
    replication_factor: int = -1,
    timeout_s: float = 30.0,
) -> CreateReport:
    """Create those that are missing and report on the others; may be repeated, and never changes or empties a topic.

    `replication_factor` -1 is the broker's default. Raises Retryable if no broker answers, Fatal if one refuses. The
    embedded broker cannot create topics: see `EmbeddedKafka.create_topics`.
    """
    errors = ConnectionErrors("topics", quiet=True)
    admin = _admin(bootstrap, config, errors)
    _reach(admin, bootstrap, errors, min(timeout_s, 10.0))
    wanted = [NewTopic(spec.name, spec.partitions, replication_factor, config=dict(spec.config)) for spec in specs]
    created: list[str] = []
    existing: list[TopicSpec] = []
    futures = admin.create_topics(wanted, operation_timeout=timeout_s, request_timeout=timeout_s)
    for spec in specs:
        if _is_new(futures[spec.name], spec.name, bootstrap, timeout_s):
            created.append(spec.name)
        else:
            existing.append(spec)
    return CreateReport(
        created=tuple(created),
        existing=tuple(spec.name for spec in existing),
        differences=tuple(_differences(admin, existing, bootstrap, timeout_s)),
    )


def group_lag(
    bootstrap: str,
    group_id: str,
    topics: Sequence[str],
    config: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 10.0,
) -> dict[tuple[str, int], int]:
    """Records per (topic, partition) that the group has not committed; all that are kept, if it committed none.

    Raises Retryable if no broker answers.
    """
    errors = ConnectionErrors("lag", quiet=True)
    consumer = Consumer(
        {**base_config(bootstrap, config or {}, errors), "group.id": group_id, "enable.auto.commit": False}
    )
    try:
        places = [
            TopicPartition(topic, partition)
            for topic in topics
            for partition in consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
        ]
        lag: dict[tuple[str, int], int] = {}
        for committed in consumer.committed(places, timeout=timeout_s):
            low, high = watermarks(consumer, committed, timeout_s=timeout_s)
            lag[committed.topic, committed.partition] = high - max(committed.offset, low)  # negative where none
    except KafkaException as error:
        raise _unreachable(bootstrap, errors, cause(error), timeout_s) from error
    else:
        return lag
    finally:
        consumer.close()


def _admin(bootstrap: str, config: Mapping[str, str] | None, errors: ConnectionErrors) -> AdminClient:
    settings: dict[str, Any] = base_config(bootstrap, config or {}, errors)  # its stub knows of no callbacks
    return AdminClient(settings)


def _reach(admin: AdminClient, bootstrap: str, errors: ConnectionErrors, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while True:
        left_s = max(until - time.monotonic(), _PAUSE_S)
        try:
            admin.list_topics(timeout=min(_TRY_S, left_s))
        except KafkaException as error:
            admin.poll(0)  # hands over the connection errors, which say more than "timed out"
            if errors.refusal is not None:
                raise Fatal(f"Kafka at {bootstrap} refuses us: {errors.refusal}") from error
            if time.monotonic() >= until:
                raise _unreachable(bootstrap, errors, cause(error), timeout_s) from error
            time.sleep(_PAUSE_S)  # the client may give up at once
        else:
            return


def _unreachable(bootstrap: str, errors: ConnectionErrors, error: KafkaError, timeout_s: float) -> Retryable:
    return Retryable(
        f"Kafka at {bootstrap} did not answer within {timeout_s:.0f} s: {(errors.last or error).str()}; "
        "check HEADRACE_KAFKA_BOOTSTRAP and HEADRACE_KAFKA_SECURITY, and that the broker runs"
    )


def _is_new(future: "Future[None]", name: str, bootstrap: str, timeout_s: float) -> bool:
    try:
        future.result(timeout_s)
    except KafkaException as error:
        if cause(error).code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise Fatal(f"topic {name} was not created at {bootstrap}: {cause(error).str()}") from error
    except TimeoutError as error:
        raise Retryable(
            f"topic {name} was not created at {bootstrap} within {timeout_s:.0f} s; an embedded broker cannot: its "
            "topics appear on first use"
        ) from error
    return True


def _differences(admin: AdminClient, specs: Sequence[TopicSpec], bootstrap: str, timeout_s: float) -> list[str]:
    if not specs:
        return []
    resources = {spec.name: ConfigResource(ResourceType.TOPIC, spec.name) for spec in specs}
    try:
        partitions = admin.list_topics(timeout=timeout_s).topics
        described = admin.describe_configs(list(resources.values()), request_timeout=timeout_s)
        found = {name: described[resource].result(timeout_s) for name, resource in resources.items()}
    except KafkaException as error:
        raise Fatal(f"existing topics could not be compared at {bootstrap}: {cause(error).str()}") from error
    differences: list[str] = []
    for spec in specs:
        actual = len(partitions[spec.name].partitions)
        if actual != spec.partitions:
            differences.append(f"{spec.name}: {actual} partitions, not {spec.partitions}")
        for setting, value in spec.config.items():
            entry = found[spec.name].get(setting)
            if entry is None or not _same(entry.value, value):
                differences.append(f"{spec.name}: {setting} is {entry.value if entry else 'unknown'}, not {value}")
    return differences


def _same(actual: str, wanted: str) -> bool:
    return sorted(actual.split(",")) == sorted(wanted.split(","))  # lists come back in any order: "compact,delete"
