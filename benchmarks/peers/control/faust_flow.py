"""Faust (faust-streaming), as its user guide has it: an agent over a topic, and a table with a changelog topic.

Pages: "Quick Start", "Agents - Self-organizing Stream Processors", "Tables and Windowing" (RocksDB is its recommended
store for production). `PEERS_STORE` names the store.
"""

import os

import faust

from benchmarks.peers.control.work import PARTITIONS, Place, decode, enrich

at = Place.told()
app = faust.App(
    at.group,
    broker=f"kafka://{at.bootstrap}",
    store=os.environ.get("PEERS_STORE", "rocksdb://"),
    datadir=str(at.state),
    topic_partitions=PARTITIONS,
    web_enabled=False,
)
source = app.topic(at.source, key_type=bytes, value_type=bytes, value_serializer="raw")
output = app.topic(at.output, key_type=bytes, value_type=bytes, value_serializer="raw")
letters = app.topic(at.letters, key_type=bytes, value_type=bytes, value_serializer="raw")
seen = app.Table("seen", default=bool, partitions=PARTITIONS)


@app.agent(source)
async def control(stream: faust.StreamT) -> None:
    """Validate, dedup, enrich and send on."""
    async for key, value in stream.items():
        try:
            request = decode(value)
        except ValueError:
            await letters.send(key=key, value=value)
            continue
        if request.job_id in seen:
            continue
        seen[request.job_id] = True
        await output.send(key=request.key_bytes, value=enrich(request))


if __name__ == "__main__":
    app.main()
