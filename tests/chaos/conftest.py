"""Fixtures of the scenarios: their broker, shared by all of them, and ports."""

import socket

import pytest

from tests.kafka.conftest import kafka

__all__ = ["free_port", "kafka"]


@pytest.fixture
def free_port() -> int:
    """For metrics: free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
