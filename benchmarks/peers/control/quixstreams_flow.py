"""Quix Streams, as its documentation has it: a StreamingDataFrame, and per-key state in RocksDB with a changelog topic.

Pages: "Quickstart", "Stateful Processing", "Processing & Transforming Data" (branching). `PEERS_GUARANTEE` chooses
what "Configuration" calls the processing guarantee: `at-least-once` is its default.
"""

import os

from quixstreams import Application, State

from benchmarks.peers.control.work import Place, decode, enrich
from schemas.requests import RequestSubmitted


def _decoded(value: bytes) -> RequestSubmitted | bytes:
    try:
        return decode(value)
    except ValueError:
        return value


def _is_new(_request: RequestSubmitted, state: State) -> bool:
    if state.exists("seen"):
        return False
    state.set("seen", 1)
    return True


def main() -> None:
    """Run it until it is stopped."""
    at = Place.told()
    app = Application(
        broker_address=at.bootstrap,
        consumer_group=at.group,
        auto_offset_reset="earliest",
        state_dir=str(at.state),
        processing_guarantee=os.environ.get("PEERS_GUARANTEE", "at-least-once"),
    )
    source = app.topic(at.source, key_deserializer="bytes", value_deserializer="bytes")
    output = app.topic(at.output, key_serializer="bytes", value_serializer="bytes")
    letters = app.topic(at.letters, key_serializer="bytes", value_serializer="bytes")
    decoded = app.dataframe(source).apply(_decoded)
    requests = decoded.filter(lambda item: not isinstance(item, bytes))
    requests.filter(_is_new, stateful=True).apply(enrich).to_topic(output)
    decoded.filter(lambda item: isinstance(item, bytes)).to_topic(letters)
    app.run()


if __name__ == "__main__":
    main()
