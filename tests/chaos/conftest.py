"""Fixtures of the scenarios: their broker, shared by all of them, and ports."""

import socket
from pathlib import Path

import pytest

from connectors.kafka.topics import TopicSpec, create_topics
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.chaos.parts import PARTITIONS, Scene
from tests.headrace_process import PlainClient
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.conftest import kafka

__all__ = ["free_port", "kafka", "scene"]


@pytest.fixture
def scene(kafka: ApacheKafka, tmp_path: Path) -> Scene:
    return scene_on(kafka, tmp_path)


def scene_on(kafka: ApacheKafka, directory: Path) -> Scene:
    """The catalogue's topics, empty, and a directory for what flows keep."""
    specs = [TopicSpec(topic.name, PARTITIONS, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
    report = create_topics(kafka.bootstrap, specs)
    client = PlainClient(kafka.bootstrap)
    client.empty(list(report.existing))
    return Scene(kafka.bootstrap, directory, client)


@pytest.fixture
def free_port() -> int:
    """For metrics: free a moment ago."""
    return port_of_now()


def port_of_now() -> int:
    """One that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
