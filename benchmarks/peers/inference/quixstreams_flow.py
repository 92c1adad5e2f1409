"""Calls of a model from a sink of Quix Streams: each record's call is begun in a pool of threads, and confirmed later.

As the page "Creating a Custom Sink" describes a streaming sink: `add` sends at once, `flush`, which a checkpoint calls
before it commits, waits for all that was sent. The checkpoint interval is the default. (A BatchingSink writes one
partition's batch after the other's, and each waits for its slowest call: half the throughput of this.)

KAFKA_BOOTSTRAP, KAFKA_GROUP, LLM_URL, SLOTS, STATE_DIR.
"""

import json
import os
import random
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

from quixstreams import Application
from quixstreams.sinks.base import BaseSink

from benchmarks.peers.inference.completion_flow import ATTEMPTS, BACKOFF_S, MOST_BACKOFF_S, CallFailed, complete


class ModelSink(BaseSink):
    """Calls the model for each record and produces its answer, or why there is none."""

    def __init__(self, app: Application, base_url: str, slots: int) -> None:
        super().__init__()
        self._producer = app.get_producer()
        self._base_url = base_url
        self._pool = ThreadPoolExecutor(slots)
        self._sent: dict[tuple[str, int], list[Future[None]]] = defaultdict(list)

    def add(self, value, key, timestamp, headers, topic, partition, offset) -> None:  # noqa: ANN001, ARG002  # its signature
        """Begin a call."""
        self._sent[topic, partition].append(self._pool.submit(self._answer, value["job_id"], value["prompt"]))

    def flush(self, *_: object) -> None:
        """Wait for the calls that were begun."""
        sent, self._sent = self._sent, defaultdict(list)
        for calls in sent.values():
            for call in calls:
                call.result()
        self._producer.flush()

    def _answer(self, job_id: str, prompt: str) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                text = complete(self._base_url, job_id, prompt)
            except CallFailed as error:
                last = error
            else:
                self._produce("answers", {"job_id": job_id, "text": text})
                return
            if attempt < ATTEMPTS:
                time.sleep(random.uniform(0, min(BACKOFF_S * 2 ** (attempt - 1), MOST_BACKOFF_S)))  # noqa: S311  # spreads load
        self._produce("failures", {"job_id": job_id, "message": str(last)})

    def _produce(self, topic: str, payload: dict[str, str]) -> None:
        self._producer.produce(topic, json.dumps(payload).encode(), payload["job_id"].encode())


def main() -> None:
    """Run until a signal."""
    app = Application(
        broker_address=os.environ["KAFKA_BOOTSTRAP"],
        consumer_group=os.environ["KAFKA_GROUP"],
        auto_offset_reset="earliest",
        state_dir=os.environ["STATE_DIR"],
    )
    questions = app.dataframe(app.topic("questions", value_deserializer="json"))
    questions.sink(ModelSink(app, os.environ["LLM_URL"], int(os.environ["SLOTS"])))
    app.run()


if __name__ == "__main__":
    main()
