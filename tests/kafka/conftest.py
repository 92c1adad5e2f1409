"""Fixtures: the broker, topics of a test's own, and relay flows as processes."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.kafka.topics import TopicSpec, create_topics
from tests.headrace_process import PlainClient, headrace
from tests.kafka.apache_kafka import ApacheKafka, missing_tools
from tests.kafka.relay import Relay, relays


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Apache Kafka, shared by all tests of a run; a test that stops it starts it again."""
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    broker = ApacheKafka(tmp_path_factory.mktemp("kafka"))
    try:
        broker.create()
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def new_topic(kafka: ApacheKafka) -> Callable[..., str]:
    """Create a topic that no other test uses."""

    def create(partitions: int = 4, **config: str) -> str:
        name = f"t-{uuid.uuid4().hex[:8]}"
        settings = {setting.replace("_", "."): value for setting, value in config.items()}
        create_topics(kafka.bootstrap, [TopicSpec(name, partitions, settings)])
        return name

    return create


@pytest.fixture
def client(kafka: ApacheKafka) -> PlainClient:
    """A client on a broker with the catalogue, all topics empty."""
    created = headrace("topics", "create", "--bootstrap", kafka.bootstrap, "--partitions", "4", "--json")
    assert created.returncode == 0, created.stderr
    client = PlainClient(kafka.bootstrap)
    client.empty(json.loads(created.stdout)["existing"])
    return client


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Make a relay between two topics."""
    with relays(tmp_path) as make:
        yield make
