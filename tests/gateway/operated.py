"""The routes of `gateway.operations` on an embedded broker, with a read model that follows its topics."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from confluent_kafka import Consumer, TopicPartition
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectors.kafka.client import record_of
from connectors.kafka.dead_letters import DeadLetters
from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.positions import GroupPositions
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord
from gateway import problems
from gateway.keys import Keys, digest_of
from gateway.lag import Lag
from gateway.operations import router
from gateway.parts import Limits, Parts
from gateway.publisher import Publisher
from gateway.read_model import ReadModel
from schemas.event import Event
from schemas.topics import CATALOGUE, dead_letter_topics, topic_of

ACME, UMBRA, ALL = "hr_acme", "hr_umbra", "hr_all"
KEYS = {digest_of(ACME): "acme", digest_of(UMBRA): "umbra", digest_of(ALL): "*"}
TOPICS = tuple(topic.name for topic in (*CATALOGUE, *dead_letter_topics()))
DEADLINE_S = 20.0


class Gateway:
    """A gateway as callers see it."""

    def __init__(self, bootstrap: str, stop_kafka: Callable[[], None], parts: Parts, client: TestClient) -> None:
        self.bootstrap = bootstrap
        self.stop_kafka = stop_kafka
        self.publisher = parts.publisher
        self.lag = parts.lag
        self._outbox = ReliableProducer(bootstrap).outbox()
        self._client = client

    def get(self, path: str, key: str = ALL, **query: object) -> Any:
        """The JSON of a GET that works."""
        status, body = self.ask("GET", path, key, **query)
        assert status == 200, body
        return body

    def ask(self, method: str, path: str, key: str = ALL, body: object = None, **query: object) -> tuple[int, Any]:
        """Status and JSON."""
        answer = self._client.request(
            method, f"/v1{path}", json=body, params=cast("dict[str, str]", query), headers={"X-API-Key": key}
        )
        return answer.status_code, answer.json()

    def publish(self, *events: Event, topic: str | None = None) -> None:
        """Events that a flow or a producer would write."""
        for event in events:
            self._outbox.send(OutgoingRecord(topic or topic_of(type(event)).name, event.key_bytes, event.encode()))
        self._outbox.flush()

    def eventually(self, what: str, found: Callable[[], object]) -> None:
        """Wait until that is true."""
        deadline = time.monotonic() + DEADLINE_S
        while not found():
            assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:.0f} s"
            time.sleep(0.01)


@contextmanager
def gateway_on(
    directory: Path, *, limits: Limits | None = None, groups: dict[str, str] | None = None
) -> Iterator[Gateway]:
    """A gateway with keys of two tenants and one that sees all."""
    with ExitStack() as running:
        kafka = running.enter_context(EmbeddedKafka())
        kafka.create_topics(TOPICS)
        read_model = ReadModel(directory / "read_model.sqlite")
        publisher = Publisher(kafka.bootstrap)
        lag = Lag(GroupPositions(kafka.bootstrap), groups or {})
        absent: Any = SimpleNamespace()
        parts = Parts(
            publisher=publisher,
            read_model=read_model,
            hub=absent,
            progress=absent,
            store=absent,
            keys=Keys(KEYS, per_s=10_000, burst=10_000),
            letters=DeadLetters(kafka.bootstrap),
            lag=lag,
            bootstrap=kafka.bootstrap,
            limits=limits or Limits(),
        )
        with following(kafka.bootstrap, read_model), TestClient(app_of(parts)) as client:
            gateway = Gateway(kafka.bootstrap, running.close, parts, client)
            gateway.eventually("Kafka to be reachable", lambda: publisher.reachable)
            yield gateway
        read_model.close()


def app_of(parts: Parts) -> FastAPI:
    """These routes alone."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with parts.publisher:
            yield

    app = FastAPI(lifespan=running)
    app.state.keys = parts.keys
    problems.install(app)
    app.include_router(router(parts))
    return app


@contextmanager
def following(bootstrap: str, read_model: ReadModel) -> Iterator[None]:
    """Keep the read model up to date, as a projection does."""
    done = threading.Event()

    def follow() -> None:
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "following", "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(topic, partition, 0) for topic in TOPICS for partition in range(4)])
            while not done.is_set():
                messages = consumer.consume(100, timeout=0.01)
                read_model.apply([record_of(message) for message in messages if message.error() is None])
        finally:
            consumer.close()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
