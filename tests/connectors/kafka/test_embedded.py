"""The embedded broker, and the source and sink on it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.topics import ensure_reachable, group_lag
from tests.kafka.client import count, values, wait_for, write
from tests.kafka.relay import Relay


def listens(bootstrap: str) -> bool:
    """Whether anybody accepts connections there."""
    host, _, port = bootstrap.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_it_ends_when_left() -> None:
    with EmbeddedKafka() as broker:
        bootstrap = broker.bootstrap
        ensure_reachable(bootstrap)
    assert not listens(bootstrap)
    with pytest.raises(RuntimeError, match="not running"):
        _ = broker.bootstrap


PARENT = """if True:
    import signal, sys
    from connectors.kafka.embedded import EmbeddedKafka
    with EmbeddedKafka() as broker:
        signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
        print(broker.bootstrap, flush=True)
        sys.stdin.read()
"""


def test_it_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        bootstrap = parent.stdout.readline().strip()
        assert listens(bootstrap)
        parent.kill()
        wait_for("the broker to end", lambda: not listens(bootstrap), timeout_s=10.0)


def test_ctrl_c_in_a_terminal_reaches_the_parent_only() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the process group that a terminal would signal
    )
    with parent:
        assert parent.stdout is not None
        bootstrap = parent.stdout.readline().strip()
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "interrupted\n"
        ensure_reachable(bootstrap)


def test_topics_appear_with_four_partitions(embedded: EmbeddedKafka) -> None:
    embedded.create_topics(["one", "two"])
    assert group_lag(embedded.bootstrap, "nobody", ["one", "two"]) == {
        (topic, partition): 0 for topic in ("one", "two") for partition in range(4)
    }


def test_a_flow_resumes_on_it_and_shows_its_lag(embedded: EmbeddedKafka, relay: Callable[..., Relay]) -> None:
    embedded.create_topics(["in", "out"])
    flow = relay(embedded.bootstrap, "in", "out", group="relay")
    numbers = [f"{number}".encode() for number in range(1000)]
    write(embedded.bootstrap, "in", numbers[:500])
    first = flow.start()
    wait_for("all committed", lambda: not any(group_lag(embedded.bootstrap, "relay", ["in"]).values()))
    assert flow.stop(first) == 0, flow.printed()
    write(embedded.bootstrap, "in", numbers[500:])
    second = flow.start()
    wait_for("the second half", lambda: count(embedded.bootstrap, "out") >= 1000)
    assert flow.stop(second) == 0, flow.printed()
    assert sorted(values(embedded.bootstrap, "out")) == sorted(numbers)


def test_what_it_dropped_unread_stops_the_flow_loudly(embedded: EmbeddedKafka, relay: Callable[..., Relay]) -> None:
    embedded.create_topics(["in", "out"])
    flow = relay(embedded.bootstrap, "in", "out")
    write(embedded.bootstrap, "in", [b"first"], partition=0)
    first = flow.start()
    wait_for("the first", lambda: count(embedded.bootstrap, "out") == 1)
    assert flow.stop(first) == 0, flow.printed()
    write(embedded.bootstrap, "in", [b"x" * 100_000] * 100, partition=0)  # 10 MB, of which it keeps 5
    assert flow.start().wait(60.0) == 1
    assert "in/0: offset 1, where the flow must resume, is not in the topic" in flow.printed()
