"""What a gateway is made of; built by `cli.gateway`, and by tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from connectors.kafka.dead_letters import DeadLetters
from connectors.object_store import ObjectStore
from connectors.tracing.off import NoTracing
from connectors.tracing.port import Tracer
from gateway.hub import Hub
from gateway.keys import ALL, Keys
from gateway.lag import Lag
from gateway.publisher import Publisher
from gateway.read_model import ReadModel
from schemas.budgets import Budget


@dataclass(frozen=True)
class Limits:
    """What a gateway takes and says, as configured."""

    max_document_bytes: int = 50_000_000
    max_body_bytes: int = 4_000_000  # of JSON: 200,000 characters, each escaped as a pair of \uXXXX, and some room
    cors_origins: tuple[str, ...] = ()
    webhook_tenants: frozenset[str] = frozenset()  # that have a secret to sign callbacks with; `*`: all
    prices: Mapping[str, tuple[Decimal, Decimal]] = field(default_factory=dict)  # of a million tokens, by model
    budget: Budget | None = None  # of tenants without one

    def signs_callbacks(self, tenant: str) -> bool:
        """Whether a callback to this tenant can be signed."""
        return not self.webhook_tenants.isdisjoint({ALL, tenant})


class Progress(Protocol):
    """How far the read model has come; the projection is one."""

    @property
    def caught_up(self) -> bool:
        """It has read all that was there when it began."""
        ...

    @property
    def healthy(self) -> bool:
        """It goes on."""
        ...


@dataclass(frozen=True)
class Parts:
    """Everything that routes use."""

    publisher: Publisher
    read_model: ReadModel
    hub: Hub
    progress: Progress
    store: ObjectStore
    keys: Keys
    letters: DeadLetters
    lag: Lag
    bootstrap: str
    kafka_options: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    tracer: Tracer = field(default_factory=NoTracing)
