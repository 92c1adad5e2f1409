"""A process of a cluster that deduplicates: `python -m tests.operators.deduplicating PROCESS ADDRESS...`."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, cluster_main

from connectors.kafka.record import Record
from operators.dedup import DedupPolicy, dedup
from operators.envelope import Envelope, Job

IDS = 100
TIMES = 3

_AT = datetime(2026, 1, 1, tzinfo=UTC)


def _enveloped(job_id: str) -> tuple[str, Envelope[str]]:
    return job_id, Envelope(Job(job_id, "default"), job_id, Record("t", 0, 0, None, b"", (), _AT), _AT)


def main(process: int, addresses: Sequence[str]) -> None:
    """Each of the ids so many times; writes `new` or `repeat` for each message that this process judges."""
    flow = Dataflow("deduplicating")
    ids = op.input("read", flow, TestingSource([str(number) for number in range(IDS)] * TIMES))
    enveloped = op.map("envelope", ids, _enveloped)
    parted = dedup("dedup", enveloped, lambda envelope: envelope.body, DedupPolicy(segment_ids=2))
    fresh = op.map("new", parted.fresh, lambda _: "new")
    repeats = op.map("repeat", parted.repeats, lambda _: "repeat")
    op.output("write", op.merge("judged", fresh, repeats), StdOutSink())
    cluster_main(flow, list(addresses), process, epoch_interval=timedelta(0), worker_count_per_proc=2)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
