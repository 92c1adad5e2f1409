"""Write a flow's records so that none is lost without a word: a snapshot waits until the broker has acknowledged them.

Guarantee: at-least-once, in produce order per key for everything that shares a ReliableProducer. A record that cannot
be delivered raises and stops the flow before the snapshot that would have skipped it.
"""

from collections.abc import Sequence

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from connectors.kafka.port import SINK_PARTS, Delivered
from connectors.kafka.producer import Outbox, ReliableProducer
from connectors.kafka.progress import Progress
from connectors.kafka.record import OutgoingRecord


class KafkaSink(FixedPartitionedSink[Sequence[OutgoingRecord], None]):
    """Writes batches of records to the topics that they name; a batch's key is the number of its part.

    A FixedPartitionedSink, because with recovery on, bytewax does not wait for a DynamicSink: at a clean end a long
    tail of steps lost items in one.
    """

    def __init__(
        self,
        producer: ReliableProducer,
        delivered: Delivered | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._producer = producer
        self._progress = progress
        self._delivered = delivered

    def list_parts(self) -> list[str]:
        """The same on every worker; bytewax gives each part to one of them."""
        return [str(part) for part in range(SINK_PARTS)]

    def part_fn(self, item_key: str) -> int:
        """The part of that number."""
        return int(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_KafkaSinkPartition":  # noqa: ARG002  # bytewax names them
        """Nothing to resume: what was not acknowledged before the snapshot comes again from upstream."""
        return _KafkaSinkPartition(self._producer.outbox(), self._delivered, self._progress)


class _KafkaSinkPartition(StatefulSinkPartition[Sequence[OutgoingRecord], None]):
    def __init__(self, outbox: Outbox, delivered: Delivered | None, progress: Progress | None) -> None:
        self._outbox = outbox
        self._progress = progress
        self._delivered = delivered
        self._sent: list[OutgoingRecord] = []  # since the last flush, if anybody wants to know

    def write_batch(self, values: list[Sequence[OutgoingRecord]]) -> None:
        records = [record for batch in values for record in batch]
        self._outbox.send(*records)
        if self._delivered is not None:
            self._sent += records

    def snapshot(self) -> None:
        """Wait for the broker. At the end as well, which is why there is no close().

        Bytewax closes while it unwinds from a failure, too, and to raise again there aborts the process (SIGABRT).
        """
        self._outbox.flush()
        if self._delivered is not None and self._sent:
            self._delivered(self._sent)
            self._sent = []
        if self._progress is not None:
            self._progress.flushed()
