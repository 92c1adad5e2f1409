"""Records to their topics: the only way out of a flow.

Guarantee: records of one key that come from one step are written in that step's order. They travel in batches: bytewax
takes 16 us for each item that it hands to a sink with parts, and 0.3 us for one that it hands to a step.
"""

from collections.abc import Iterable, Sequence
from zlib import crc32

import bytewax.operators as op
from bytewax.operators import KeyedStream

from connectors.kafka.port import SINK_PARTS, Delivered
from connectors.kafka.record import OutgoingRecord
from operators.runtime import Runtime

_PARTS = tuple(str(part) for part in range(SINK_PARTS))


def write(step_id: str, up: KeyedStream[OutgoingRecord], runtime: Runtime, delivered: Delivered | None = None) -> None:
    """Write each record to the topic that it names. `delivered` is told what the brokers have acknowledged."""
    op.output(step_id, op.flat_map_batch(f"{step_id}_batch", up, by_part), runtime.topics.sink(delivered))


def by_part(keyed: Sequence[tuple[str, OutgoingRecord]]) -> Iterable[tuple[str, Sequence[OutgoingRecord]]]:
    """The records of each of the sink's parts, in order; those of a key are all of one part."""
    parts: dict[str, list[OutgoingRecord]] = {}
    for key, record in keyed:
        parts.setdefault(_PARTS[crc32(key.encode()) % SINK_PARTS], []).append(record)
    return parts.items()
