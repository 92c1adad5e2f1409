"""`headrace bench NAME`: one measurement for each claim. They need a checkout, since they use the tests' real parts."""

import click

from cli.main import LazyGroup

BENCHMARKS = {
    "admission": "benchmarks.admission:admission",
    "chaos": "benchmarks.chaos:chaos",
    "dedup": "benchmarks.dedup:dedup_bench",
    "embed": "benchmarks.embed:embed",
    "extract": "benchmarks.extract:extract",
    "gateway": "benchmarks.gateway:gateway",
    "offload": "benchmarks.offload:offload",
    "peers": "benchmarks.peers.peers:peers",
    "retrieval": "benchmarks.retrieval:retrieval",
    "scale": "benchmarks.scale:scale",
}


@click.group(cls=LazyGroup, commands_at=BENCHMARKS)
def bench() -> None:
    """Measure what Headrace claims; prints figures, and one JSON object with --json."""
