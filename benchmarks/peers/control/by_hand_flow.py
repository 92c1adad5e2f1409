"""A loop by hand on confluent-kafka, as one writes it first: the floor of what is possible in Python.

It remembers ids in memory, so that nothing of them survives, and commits what it has read in the background (the
client's default), whether or not its results have been delivered.
"""

from confluent_kafka import Consumer, Producer

from benchmarks.peers.control.work import Place, decode, enrich

BATCH = 500


def main() -> None:
    """Consume, validate, dedup, enrich, produce; for ever."""
    at = Place.told()
    consumer = Consumer({"bootstrap.servers": at.bootstrap, "group.id": at.group, "auto.offset.reset": "earliest"})
    producer = Producer({"bootstrap.servers": at.bootstrap, "linger.ms": 5})
    consumer.subscribe([at.source])
    seen: set[str] = set()
    while True:
        for message in consumer.consume(BATCH, timeout=0.1):
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            try:
                request = decode(message.value())
            except ValueError:
                _produce(producer, at.letters, message.key(), message.value())
                continue
            if request.job_id in seen:
                continue
            seen.add(request.job_id)
            _produce(producer, at.output, request.key_bytes, enrich(request))
        producer.poll(0)


def _produce(producer: Producer, topic: str, key: bytes | None, value: bytes | None) -> None:
    while True:
        try:
            producer.produce(topic, key=key, value=value)
        except BufferError:
            producer.poll(0.1)
        else:
            return


if __name__ == "__main__":
    main()
