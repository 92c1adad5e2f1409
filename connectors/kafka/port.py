"""The port through which flows meet their topics: Kafka in production, memory in tests."""

from collections.abc import Callable, Sequence
from typing import Protocol

from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.kafka.record import OutgoingRecord, Record
from schemas.event import Event

Delivered = Callable[[Sequence[OutgoingRecord]], None]

SINK_PARTS = 8
"""Of each sink: bytewax's, not Kafka's. Bytewax spreads them over the workers, so they bound how many workers write.
They cost nothing, and keep their number for the life of a recovery directory."""


class Topics(Protocol):
    """Where events come from and go to."""

    def source(self, event: type[Event]) -> Source[Record]:
        """Everything on the topic of `event`, from where the flow stopped."""
        ...

    def sink(self, delivered: Delivered | None = None) -> Sink[tuple[str, Sequence[OutgoingRecord]]]:
        """Writes records to whatever topic they name; what it took is delivered before the next snapshot.

        The key of a batch of records is the number of the part that is to write it.
        `delivered` is told the records that the broker has acknowledged, after each flush, on the worker's thread.
        """
        ...
