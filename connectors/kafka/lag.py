"""How many records wait for a flow, by partition, told whenever somebody asks for metrics.

The end of a partition is asked of the brokers. What the flow's own consumer knows of it is as old as its last fetch,
and it fetches nothing while it is paused, or has a thousand records that the flow does not take: in an outage of the
model, of all times, its lag would stand still.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

import structlog
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its documented names
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from connectors.kafka.client import ConnectionErrors, base_config
from connectors.kafka.progress import Place, Progress

log = structlog.get_logger()

NAME = "headrace_consumer_lag_records"
DOCUMENTATION = "Records of a partition that the flow has not taken up yet."
LABELS = ("flow", "topic", "partition")

_TIMEOUT_S = 2.0  # a broker that is there answers in milliseconds; Prometheus waits 10 s for all metrics
_FRESH_S = 1.0  # two scrapers at once ask once


class ConsumerLag(Collector):
    """The metric, for flows whose progress is known; one connection, opened when it is first asked for.

    Without an answer of the brokers it tells of the last ends that were known. A partition that is read no more has no
    lag. It is registered while entered.
    """

    name, documentation, labelnames = NAME, DOCUMENTATION, LABELS

    def __init__(self, bootstrap: str, config: Mapping[str, str], flows: Iterable[Progress]) -> None:
        self._bootstrap = bootstrap
        self._config = config
        self._flows = tuple(flows)
        self._admin: AdminClient | None = None
        self._ends: dict[Place, int] = {}
        self._asked_at = float("-inf")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        REGISTRY.register(self)
        return self

    def __exit__(self, *_: object) -> None:
        REGISTRY.unregister(self)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Its name; registering it asks nobody."""
        return [GaugeMetricFamily(NAME, DOCUMENTATION, labels=LABELS)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Lag by flow and partition."""
        positions = [(each.flow, place, offset) for each in self._flows for place, offset in each.positions.items()]
        with self._lock:
            self._ask({place for _, place, _ in positions})
        (family,) = self.describe()
        for flow, place, offset in positions:
            if place in self._ends:
                topic, partition = place
                family.add_metric((flow, topic, str(partition)), max(0, self._ends[place] - offset))
        return [family]

    def _ask(self, places: set[Place]) -> None:
        if not places or time.monotonic() - self._asked_at < _FRESH_S:
            return
        if self._admin is None:
            settings: dict[str, Any] = base_config(
                self._bootstrap, self._config, ConnectionErrors("metrics", quiet=True)
            )
            self._admin = AdminClient(settings)
        until = time.monotonic() + _TIMEOUT_S
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # its stub's omission
        try:
            futures = self._admin.list_offsets(
                {TopicPartition(*place): latest for place in places}, request_timeout=_TIMEOUT_S
            )
        except KafkaException as error:
            log.warning("lag not known", error=str(error))
            return
        for place, future in futures.items():
            try:
                self._ends[place.topic, place.partition] = future.result(max(0.0, until - time.monotonic())).offset
            except (KafkaException, TimeoutError) as error:
                log.debug("lag not known", topic=place.topic, partition=place.partition, error=str(error))
        self._asked_at = time.monotonic()
