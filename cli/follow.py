"""Submitting work and following it to its end, as any other service could: by topics alone."""

from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka.client import ConnectionErrors, base_config, watermarks
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import outgoing
from connectors.kafka.topics import ensure_reachable
from schemas.dead_letter import DeadLetter
from schemas.errors import HeadraceError
from schemas.event import JobEvent
from schemas.jobs import JobState, StatusChanged
from schemas.topics import CATALOGUE, dead_letter_topics

ENDS: dict[str, type[JobEvent]] = {
    topic.name: topic.event
    for topic in (*CATALOGUE, *dead_letter_topics())
    if (topic.ends_job or topic.event in {DeadLetter, StatusChanged}) and issubclass(topic.event, JobEvent)
}
"""Topics on which a job ends, and the event that ends it there: of its statuses, that it was cancelled."""

WINDOW = 256
"""Jobs submitted and not yet ended. An embedded broker forgets what is unconsumed beyond about 5 MB a partition: 256
uploads by reference are 0.2 MB."""

LOOK_EVERY_S = 15.0
"""After so long without an end of any job we look whether the broker is still there."""

ANSWER_S = 5.0


class Follower:
    """Submits events and yields what ends them: a result, an indexed document, a dead letter, or a cancelled status."""

    def __init__(self, bootstrap: str, options: dict[str, str]) -> None:
        ensure_reachable(bootstrap, options)
        self._outbox = ReliableProducer(bootstrap, options).outbox()
        self._consumer = Consumer(
            {
                **base_config(bootstrap, options, ConnectionErrors("follower", quiet=True)),
                "group.id": "headrace.follower",  # required by the client; nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self._bootstrap = bootstrap
        self._consumer.assign([at for name in ENDS for at in self._ends_of(name)])

    def _ends_of(self, topic: str) -> Iterator[TopicPartition]:
        """Where each partition ends now: what was there before is not ours."""
        metadata = self._consumer.list_topics(topic, timeout=10).topics[topic]
        if metadata.error is not None:
            raise HeadraceError(f"topic {topic}: {metadata.error.str()}; create it with `headrace topics create`")
        for partition in metadata.partitions:
            _, end = watermarks(self._consumer, TopicPartition(topic, partition), timeout_s=10)
            yield TopicPartition(topic, partition, end)

    def submit(self, event: JobEvent) -> None:
        """Hand an event to the broker; `flush` or a follow confirms it."""
        self._outbox.send(outgoing(event, step="cli"))

    def flush(self) -> None:
        """Wait until everything submitted is durable; raises if it is not."""
        self._outbox.flush()

    def follow(
        self, events: Iterable[JobEvent], *, check: Callable[[], None] = lambda: None, stalled_after_s: float = 300.0
    ) -> Iterator[JobEvent]:
        """Submit `events`, at most WINDOW of them unfinished at a time, and yield the end of each as it comes.

        `check` is called between polls and may raise. Raises HeadraceError if nothing ends for `stalled_after_s`.
        """
        waiting: set[str] = set()
        source = iter(events)
        exhausted = False
        progress_at = looked_at = monotonic()
        while True:
            while not exhausted and len(waiting) < WINDOW:
                event = next(source, None)
                if event is None:
                    exhausted = True
                    self.flush()
                else:
                    waiting.add(event.job_id)
                    self.submit(event)
            if exhausted and not waiting:
                return
            check()
            for ended in self._poll():
                if ended.job_id in waiting:
                    waiting.remove(ended.job_id)
                    progress_at = monotonic()
                    yield ended
            if monotonic() - max(progress_at, looked_at) > LOOK_EVERY_S:
                looked_at = monotonic()
                self._look(len(waiting))
            if monotonic() - progress_at > stalled_after_s:
                raise HeadraceError(
                    f"{len(waiting)} jobs have not ended, none in the last {stalled_after_s:.0f} s; do the flows run?"
                )

    def _look(self, waiting: int) -> None:
        """Raises HeadraceError if the broker is gone: librdkafka itself would wait for it for ever."""
        try:
            self._consumer.list_topics(timeout=ANSWER_S)
        except KafkaException as error:
            raise HeadraceError(
                f"the broker at {self._bootstrap} is out of reach; what became of {waiting} jobs, `headrace jobs show` "
                "tells when it is back"
            ) from error

    def _poll(self) -> Iterator[JobEvent]:
        for message in self._consumer.consume(WINDOW, timeout=0.1):
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF or error.retriable():  # noqa: SLF001  # the client's constant
                    continue
                raise KafkaException(error)
            yield from _decode(message)

    def close(self) -> None:
        """Deliver what is left and leave."""
        self._outbox.flush()
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decode(message: Message) -> Iterator[JobEvent]:
    topic, value = message.topic(), message.value()
    if topic in ENDS and isinstance(value, bytes):
        event = ENDS[topic].model_validate_json(value)
        if not isinstance(event, StatusChanged) or event.state is JobState.CANCELLED:
            yield event
