"""Settings to connectors to flows: the only place that knows which implementation stands behind a port."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import structlog
from bytewax.dataflow import Dataflow

from cli.configuration import bootstrap_of
from cli.memory import settle_memory
from cli.objects import object_store
from cli.slicing import group_of, slice_of
from connectors.circuit import Circuits
from connectors.embedder.port import Embedder
from connectors.event_loop import EventLoop
from connectors.kafka.budgets import read_budgets
from connectors.kafka.port import Delivered
from connectors.kafka.pressure import Pressure
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.progress import Progress
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource
from connectors.kafka.stop import Stop
from connectors.ledger.off import NoLedger
from connectors.ledger.patient import PatientLedger
from connectors.ledger.port import Ledger
from connectors.ledger.sql import SqlLedger, Store
from connectors.llm.port import LLM
from connectors.object_store import ObjectStore
from connectors.parsers.port import Parser
from connectors.settings import POSTGRES_URLS, Settings
from connectors.spaces import IndexedSpaces, OneSpace, Spaces
from connectors.tracing.off import NoTracing
from connectors.tracing.port import Tracer
from connectors.vector_index.port import VectorIndex
from connectors.webhook.port import Webhooks
from flows import answer, embed, extract, index, ingest, notifications, search, usage, webhooks
from operators.budget import BudgetPolicy
from operators.chunk import ChunkPolicy
from operators.extract import ExtractPolicy
from operators.guard import GuardPolicy
from operators.infer import INFER
from operators.paid_once import AmbiguityPolicy
from operators.runtime import Runtime
from schemas.budgets import Budget, BudgetChanged
from schemas.event import Event
from schemas.prices import Prices
from schemas.topics import topic_of

log = structlog.get_logger()

FLOWS = ("ingest", "extract", "embed", "index", "answer", "search", "usage", "notifications", "webhooks")
WEBHOOK_LOOK_UPS = 64  # a tenant whose names are never found has 32 callbacks on their way at most


class KafkaTopics:
    """The Topics of one flow on Kafka. All sinks of a process share a producer, so that order per key holds."""

    def __init__(
        self,
        producer: ReliableProducer,
        settings: Settings,
        flow: str,
        stop: Stop,
        pressure: Pressure,
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress or Progress(flow)
        self._pressure = pressure
        self._producer = producer
        self._settings = settings
        self._group_id = group_of(flow, settings)
        self._slice = slice_of(flow, settings)
        self._stop = stop

    def source(self, event: type[Event]) -> KafkaSource:
        """The topic of `event`."""
        return KafkaSource(
            bootstrap_of(self._settings),
            [topic_of(event).name],
            group_id=self._group_id,
            stop=self._stop,
            pressure=self._pressure,
            config=self._settings.kafka_config(),
            epoch_s=self._settings.epoch_s,
            only=self._reads,
            progress=self._progress,
        )

    def _reads(self, partition: int) -> bool:
        mine = self._slice
        return mine is None or mine.by == "tenant" or mine.owns_partition(partition)

    def sink(self, delivered: Delivered | None = None) -> KafkaSink:
        """Any topic."""
        return KafkaSink(self._producer, delivered, progress=self._progress)


class Connectors:
    """Builds each connector once, when the first flow needs it, and closes them all.

    owner: who this process is to the ledger; exclusive.
    """

    def __init__(self, settings: Settings, loop: EventLoop, owner: str) -> None:
        self.circuits = Circuits()
        self.tracer: Tracer = NoTracing()  # until a process has one
        self._owner = owner
        self._settings = settings
        self._loop = loop
        self._closing = AsyncExitStack()
        self._embedders: dict[str, Embedder] = {}

    @cached_property
    def store(self) -> ObjectStore:
        """Claim checks and documents."""
        return object_store(self._settings)

    @cached_property
    def parser(self) -> Parser:
        """Documents to text."""
        from connectors.parsers.pool import ProcessParser

        parser = ProcessParser(workers=self._settings.parser_processes, memory_bytes=self._settings.parser_memory_bytes)
        self._closing.push_async_callback(parser.close)
        return parser

    def embedder(self, model: str | None = None) -> Embedder:
        """Text to vectors, by the default model unless another one is named. Loaded once."""
        name = model or self._settings.embed_model
        if name not in self._embedders:
            from connectors.embedder.sentence_transformer import SentenceTransformerEmbedder

            embedder = SentenceTransformerEmbedder(name, precision=self._settings.embed_precision)
            self._closing.push_async_callback(embedder.close)
            self._embedders[name] = embedder
            settle_memory()
        return self._embedders[name]

    def remembering_embedder(self, model: str | None = None) -> Embedder:
        """The same for documents, which come again with little changed; questions are not remembered."""
        embedder = self.embedder(model)
        if self._settings.embed_cache_bytes == 0:
            return embedder
        from connectors.embedder.cache import CachedEmbedder

        path = self._settings.data_dir / "embeddings.sqlite"
        cached = CachedEmbedder(embedder, path, max_bytes=self._settings.embed_cache_bytes)
        self._closing.push_async_callback(cached.close)
        return cached

    @cached_property
    def search_spaces(self) -> Spaces:
        """Which model, and where, for a flow that does nothing but search."""
        self.embedder()  # now rather than at the first question, which would wait for it
        return self.question_spaces

    @cached_property
    def question_spaces(self) -> Spaces:
        """Which model, and where, for a flow that may be asked nothing: a model is 1 GB, and 5 s of each start."""
        from connectors.embedder.sentence_transformer import ensure_there

        for model in self._models:
            ensure_there(model)
        return self._spaces(self.embedder)

    @cached_property
    def document_spaces(self) -> Spaces:
        """Which model, and where, for documents."""
        self.embedder()
        return self.lazy_spaces

    @cached_property
    def lazy_spaces(self) -> Spaces:
        """The same for a process that embeds only when a model has just taken over."""
        return self._spaces(self.remembering_embedder)

    @cached_property
    def split_spaces(self) -> Spaces:
        """The same for a process that embeds and does not index: the embedded index belongs to another one."""
        if self._settings.qdrant_url is None:
            return OneSpace(self.remembering_embedder())
        return self.document_spaces

    def _spaces(self, load: Callable[[str], Embedder]) -> Spaces:
        return IndexedSpaces(self.vectors, [partial(load, model) for model in self._models])

    @property
    def _models(self) -> list[str]:
        return list(dict.fromkeys((self._settings.embed_model, *self._settings.embed_models)))

    @cached_property
    def vectors(self) -> VectorIndex:
        """The vector index: a server if one is named, else the embedded one."""
        vectors = self._open_vectors()
        self._closing.push_async_callback(vectors.close)
        return vectors

    def _open_vectors(self) -> VectorIndex:
        settings = self._settings
        if settings.qdrant_url is not None:
            from connectors.vector_index.qdrant import QdrantIndex

            key = settings.qdrant_api_key
            shown = None if key is None else key.get_secret_value()
            return QdrantIndex(settings.qdrant_url, api_key=shown, ca=settings.qdrant_ca)
        from connectors.vector_index.edge import EdgeIndex

        return EdgeIndex(settings.data_dir / "vectors")

    @cached_property
    def llm(self) -> LLM:
        """The model: an endpoint if one is named, else the extractive answerer."""
        llm = self._open_llm()
        self._closing.push_async_callback(llm.close)
        return llm

    def _open_llm(self) -> LLM:
        settings = self._settings
        if settings.llm_url is not None and settings.llm_model is not None:
            from connectors.llm.openai import OpenAICompatibleLLM

            key = settings.llm_api_key
            return OpenAICompatibleLLM(
                settings.llm_url,
                settings.llm_model,
                api_key=None if key is None else key.get_secret_value(),
                ca=settings.llm_ca,
                tracer=self.tracer,
            )
        from connectors.llm.extractive import ExtractiveLLM

        return ExtractiveLLM(self.embedder())

    @cached_property
    def webhooks(self) -> Webhooks:
        """Receivers of callbacks."""
        from connectors.public_address import EVERYWHERE, PublicAddresses
        from connectors.webhook.http import HttpWebhooks

        allowed = EVERYWHERE if self._settings.webhook_private else ()
        if not self._settings.webhook_secrets:
            log.warning(
                "no callback can be signed, so none is sent: each becomes a dead letter; see HEADRACE_WEBHOOK_SECRETS"
            )
        secrets = {tenant: secret.get_secret_value() for tenant, secret in self._settings.webhook_secrets.items()}
        return HttpWebhooks(secrets, PublicAddresses(allowed, look_ups=WEBHOOK_LOOK_UPS), tracer=self.tracer)

    @cached_property
    def budgets(self) -> Mapping[str, BudgetChanged]:
        """By tenant, as they are now."""
        return read_budgets(bootstrap_of(self._settings), self._settings.kafka_config())

    @cached_property
    def ledger(self) -> Ledger:
        """Paid calls."""
        ledger = self._open_ledger()
        self._closing.push_async_callback(ledger.close)
        return ledger

    def _open_ledger(self) -> Ledger:
        settings = self._settings
        where = settings.ledger or str(settings.data_dir / "ledger.sqlite")
        if where == "off":
            return NoLedger()
        store: Store
        if where.startswith(POSTGRES_URLS):
            from connectors.ledger.postgres import PostgresStore

            password = settings.ledger_password
            store = PostgresStore(where, password=None if password is None else password.get_secret_value())
        else:
            from connectors.ledger.sqlite import SqliteStore

            store = SqliteStore(Path(where))
        retention_s = settings.ledger_days * 24 * 3600
        return PatientLedger(SqlLedger(store, self._owner, retention_s=retention_s), self.circuits.of("ledger"))

    def close(self) -> None:
        """Close every connector that was built, the last one first."""
        self._loop.run(self._closing.aclose(), timeout_s=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build(  # noqa: PLR0911  # one return per flow
    name: str, runtime: Runtime, connectors: Connectors, settings: Settings
) -> Dataflow:
    """The flow of that name. Only the connectors that it uses are touched."""
    extraction = ExtractPolicy(max_document_bytes=settings.max_document_bytes)
    chunking = ChunkPolicy(size_tokens=settings.chunk_tokens, overlap_tokens=settings.chunk_overlap_tokens)
    inference = replace(
        INFER, capacity=settings.infer_capacity, backlog=settings.infer_capacity, timeout_s=settings.infer_timeout_s
    )
    at = connectors
    match name:
        case "ingest":
            return ingest.build(runtime, at.store, at.parser, at.document_spaces, at.vectors, extraction, chunking)
        case "extract":
            return extract.build(runtime, at.store, at.parser, extraction)
        case "embed":
            return embed.build(runtime, at.store, at.split_spaces, chunking)
        case "index":
            return index.build(runtime, at.store, at.vectors, at.lazy_spaces)
        case "usage":
            return usage.build(runtime)
        case "notifications":
            return notifications.build(runtime, settings.buckets)
        case "webhooks":
            return webhooks.build(runtime, at.webhooks)
        case "search":
            return search.build(runtime, at.search_spaces, at.vectors)
        case "answer":
            policy = answer.AnswerPolicy(
                guard=guard_policy(settings),
                budget=BudgetPolicy(settings.budget or Budget(), Prices(settings.prices), at.budgets),
                inference=inference,
                ambiguity=AmbiguityPolicy(settings.ambiguous, settings.ambiguous_tenants),
            )
            return answer.build(runtime, at.question_spaces, at.vectors, at.llm, at.ledger, policy)
        case _:
            raise LookupError(f"no flow {name!r}; there are {', '.join(FLOWS)}")


def guard_policy(settings: Settings) -> GuardPolicy:
    """What one root job may set off."""
    return GuardPolicy(
        max_depth=settings.guard_depth,
        max_age_s=settings.guard_age_s,
        max_jobs=settings.guard_jobs,
        max_tokens=settings.guard_tokens,
        max_repeats=settings.guard_repeats,
        max_prompt_chars=settings.guard_prompt_chars,
        review_s=settings.review_days * 24 * 3600,
    )


class _Absent:
    """Stands for a topic or connector that a drawing never touches."""


def sketch(name: str) -> Dataflow:
    """The flow of that name on nothing, to be drawn and never run: loads no model, opens no index."""
    absent: Any = _Absent()
    connectors = SimpleNamespace(
        store=absent,
        parser=absent,
        document_spaces=absent,
        question_spaces=absent,
        search_spaces=absent,
        split_spaces=absent,
        lazy_spaces=absent,
        vectors=absent,
        llm=absent,
        ledger=NoLedger(),
        budgets={},
        webhooks=absent,
    )
    settings = Settings(kafka_bootstrap="localhost")
    topics = KafkaTopics(ReliableProducer("localhost"), settings, name, Stop(), Pressure())
    return build(name, Runtime(topics, absent, Stop()), cast("Connectors", connectors), Settings())
