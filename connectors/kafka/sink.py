"""Write a flow's records so that none is lost without a word: a snapshot waits until the broker has acknowledged them.

Guarantee: at-least-once, in produce order per key for everything that shares a ReliableProducer. A record that cannot
be delivered raises and stops the flow before the snapshot that would have skipped it. After a kill, what is known to
be on its topic already is not written again (`written.py`).
"""

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from connectors.kafka.port import Delivered
from connectors.kafka.producer import Outbox, ReliableProducer
from connectors.kafka.progress import Progress
from connectors.kafka.record import OutgoingRecord
from connectors.kafka.written import Written, WrittenSnapshot


class KafkaSink(FixedPartitionedSink[OutgoingRecord, WrittenSnapshot | None]):
    """Writes (key, record) pairs to the topic that each record names; the key only routes within the dataflow.

    A FixedPartitionedSink, because with recovery on, bytewax does not wait for a DynamicSink: at a clean end a long
    tail of steps lost items in one. Its `parts` are bytewax's, not Kafka's: bytewax spreads them over the workers, so
    they bound how many workers write. They cost nothing, and keep their number for the life of a recovery directory.
    """

    def __init__(
        self,
        producer: ReliableProducer,
        delivered: Delivered | None = None,
        *,
        parts: int = 8,
        progress: Progress | None = None,
        written: Written | None = None,
    ) -> None:
        self._producer = producer
        self._written = written
        self._progress = progress
        self._delivered = delivered
        self._parts = parts

    def list_parts(self) -> list[str]:
        """The same on every worker; bytewax gives each part to one of them."""
        return [str(part) for part in range(self._parts)]

    def build_part(self, step_id: str, for_part: str, resume_state: WrittenSnapshot | None) -> "_KafkaSinkPartition":  # noqa: ARG002  # bytewax names them
        """What was not acknowledged before the snapshot comes again from upstream."""
        if self._written is not None and resume_state is not None:  # None: of a release that wrote it again
            self._written.resume(resume_state)
        return _KafkaSinkPartition(self._producer.outbox(), self._delivered, self._progress, self._written)


class _KafkaSinkPartition(StatefulSinkPartition[OutgoingRecord, WrittenSnapshot | None]):
    def __init__(
        self, outbox: Outbox, delivered: Delivered | None, progress: Progress | None, written: Written | None
    ) -> None:
        self._outbox = outbox
        self._written = written
        self._progress = progress
        self._delivered = delivered
        self._sent: list[OutgoingRecord] = []  # since the last flush, if anybody wants to know

    def write_batch(self, values: list[OutgoingRecord]) -> None:
        self._outbox.send(*(values if self._written is None else self._written.left(values)))
        if self._delivered is not None:
            self._sent += values

    def snapshot(self) -> WrittenSnapshot | None:
        """Wait for the broker. At the end as well, which is why there is no close().

        Bytewax closes while it unwinds from a failure, too, and to raise again there aborts the process (SIGABRT).
        """
        self._outbox.flush()
        if self._delivered is not None and self._sent:
            self._delivered(self._sent)
            self._sent = []
        if self._progress is not None:
            self._progress.flushed()
        return None if self._written is None else self._written.snapshot()
