"""Headrace as a team runs it: `headrace` commands as processes, and plain Kafka clients around them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

END_S = 120.0
ANSWER_S = 240.0
COMMAND_S = 600.0  # the longest one takes 5,000 documents through the demo

Payload = dict[str, object]


def headrace(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


class RunningFlows:
    """`headrace run FLOW...` while entered; started, it has loaded its models and runs."""

    def __init__(self, *flows: str, log: Path, **variables: str) -> None:
        self._command = [sys.executable, "-m", "cli.main", "run", *flows]
        self._environment = os.environ | variables
        self.log = log

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("running:"), self.log.read_text()
        return self

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(END_S)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


class PlainClient:
    """A producer and consumer that know topics and JSON, and nothing of Headrace."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap})

    def send(
        self, topic: str, payload: Payload | bytes, *, key: str | None = None, traceparent: str | None = None
    ) -> None:
        """Produce one message and wait for its delivery."""
        failures: list[str] = []
        self._producer.produce(
            topic,
            payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
            key,
            headers=None if traceparent is None else [("traceparent", traceparent)],
            on_delivery=lambda error, _: failures.append(str(error)) if error is not None else None,
        )
        assert self._producer.flush(30) == 0
        assert failures == []

    def empty(self, topics: list[str]) -> None:
        """Delete all records, so that the earliest one is the next; compacted topics keep theirs."""
        admin = AdminClient({"bootstrap.servers": self._bootstrap})
        known = admin.list_topics(timeout=10).topics
        ends = [
            TopicPartition(topic, partition, OFFSET_END) for topic in topics for partition in known[topic].partitions
        ]
        for deleted in admin.delete_records(ends).values():
            try:
                deleted.result(30)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.POLICY_VIOLATION:  # what a topic that is only compacted answers
                    raise

    def read_until(self, topic: str, enough: Callable[[list[Payload]], bool]) -> list[Payload]:
        """All that a topic holds, in any order of its partitions, once `enough` says so; fails after a deadline."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "plain", "enable.auto.commit": False})
        try:
            return self._read(consumer, topic, enough)
        finally:
            consumer.close()

    def _read(self, consumer: Consumer, topic: str, enough: Callable[[list[Payload]], bool]) -> list[Payload]:
        found: list[Payload] = []
        parts = [TopicPartition(topic, n) for n in consumer.list_topics(topic, timeout=10).topics[topic].partitions]
        # From the low end: a position is known from the start, and never behind what was deleted.
        ends = {part.partition: consumer.get_watermark_offsets(part, timeout=10) for part in parts}
        read = {partition: low for partition, (low, _) in ends.items()}
        consumer.assign([TopicPartition(topic, partition, low) for partition, low in read.items()])
        satisfied = False
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            if satisfied and all(read[partition] >= high for partition, (_, high) in ends.items()):
                return found
            message = consumer.poll(0.2)
            if message is None:
                continue
            error = message.error()
            assert error is None, error
            value, partition, offset = message.value(), message.partition(), message.offset()
            assert value is not None
            assert partition is not None
            assert offset is not None
            read[partition] = offset + 1
            found.append(json.loads(value))
            if not satisfied and enough(found):
                satisfied = True  # now the other partitions, up to where they are now
                ends = {part.partition: consumer.get_watermark_offsets(part, timeout=10) for part in parts}
        raise AssertionError(f"{topic}: not enough in {ANSWER_S:.0f} s: {found}")
