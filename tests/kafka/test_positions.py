"""How far groups are, asked of a broker that has only just started."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.kafka.topics import TopicSpec, create_topics
from tests.kafka.apache_kafka import ApacheKafka, missing_tools

pytestmark = pytest.mark.kafka

ASKING = """
import sys, time
from connectors.kafka.positions import GroupPositions
from schemas.errors import Retryable
positions = GroupPositions(sys.argv[1])
until = time.monotonic() + 30
while time.monotonic() < until:
    try:
        print(positions.of([f"group-{n}" for n in range(9)], ["t"]))
        break
    except Retryable as error:
        print(error)
"""


@pytest.fixture
def fresh_kafka(tmp_path: Path) -> Iterator[ApacheKafka]:
    """A broker that no group has ever asked anything."""
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    broker = ApacheKafka(tmp_path)
    broker.create()
    yield broker
    broker.stop()


def test_asking_while_groups_have_no_coordinator_yet_ends_in_an_answer(fresh_kafka: ApacheKafka) -> None:
    """An AdminClient of librdkafka ends its process by a segmentation fault then."""
    create_topics(fresh_kafka.bootstrap, [TopicSpec("t", 4)])
    command = [sys.executable, "-c", ASKING, fresh_kafka.bootstrap]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.splitlines()[-1] == "{}", asked.stdout
