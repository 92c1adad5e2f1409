"""A gateway in this process, on an embedded broker, as its callers see it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from connectors.kafka.dead_letters import DeadLetters
from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.positions import GroupPositions
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord
from connectors.object_store import ObjectStore
from gateway.app import create_app
from gateway.hub import Hub
from gateway.keys import Keys, digest_of
from gateway.lag import Lag
from gateway.parts import Limits, Parts
from gateway.projection import Projection
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

    def get(self, path: str, key: str = ALL, **query: Any) -> Any:
        """The JSON of a GET that works."""
        status, body = self.ask("GET", path, key, **query)
        assert status == 200, body
        return body

    def ask(  # options by keyword
        self, method: str, path: str, key: str = ALL, body: object = None, *, traceparent: str = "", **query: object
    ) -> tuple[int, Any]:
        """Status and JSON."""
        headers = {"X-API-Key": key} | ({"traceparent": traceparent} if traceparent else {})
        answer = self._client.request(
            method, f"/v1{path}", json=body, params=cast("dict[str, str]", query), headers=headers
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
    directory: Path, *, limits: Limits | None = None, groups: dict[str, list[str]] | None = None
) -> Iterator[Gateway]:
    """A gateway with keys of two tenants and one that sees all."""
    with ExitStack() as running:
        kafka = running.enter_context(EmbeddedKafka())
        kafka.create_topics(TOPICS)
        read_model, hub = ReadModel(directory / "read_model.sqlite"), Hub()
        projection = Projection(kafka.bootstrap, {}, read_model, hub)
        parts = Parts(
            publisher=Publisher(kafka.bootstrap),
            read_model=read_model,
            hub=hub,
            progress=projection,
            store=ObjectStore(str(directory / "objects")),
            keys=Keys(KEYS, per_s=10_000, burst=10_000),
            letters=DeadLetters(kafka.bootstrap),
            lag=Lag(GroupPositions(kafka.bootstrap), groups or {}),
            bootstrap=kafka.bootstrap,
            limits=limits or Limits(),
        )
        projection.start()
        try:
            with TestClient(served(parts)) as client:
                gateway = Gateway(kafka.bootstrap, running.close, parts, client)
                gateway.eventually("it to be ready", lambda: client.get("/readyz").status_code == 200)
                yield gateway
        finally:
            projection.close()
            read_model.close()


def served(parts: Parts) -> Starlette:
    """The application, with a publisher that runs as long as it does."""

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        async with parts.publisher:
            yield

    return Starlette(routes=[Mount("/", create_app(parts))], lifespan=running)
