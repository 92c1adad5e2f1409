"""A million live ids: how much memory they take, and how long a restart takes to have them back."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import click
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main

from benchmarks.report import Aim, emit
from connectors.kafka.record import Record
from operators.dedup import DedupPolicy, dedup
from operators.envelope import Envelope, Job

RECOVERY_PARTITIONS = 16  # as RecoveryDirectory makes
RSS_AIM_MB = 300.0
RESTORE_AIM_S = 10.0
_AT = datetime(2026, 1, 1, tzinfo=UTC)
_RECORD = Record("requests.submitted", 0, 0, None, b"", (), _AT)


@dataclass(frozen=True)
class _Part:
    """What one process saw."""

    fresh: list[str]
    repeats: list[str]
    seconds: float
    rss_mb: float  # at its peak


class _Ids:
    """Ids from 0 to `count`, made as they are read; then, in the next run, the first again."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[object]:
        yield from (f"job-{number:012d}" for number in range(self._count))
        yield TestingSource.EOF()
        yield f"job-{0:012d}"


def _flow(count: int, fresh: list[str], repeats: list[str]) -> Dataflow:
    flow = Dataflow("bench")
    read = op.input("read", flow, TestingSource(_Ids(count), batch_size=1000))

    def enveloped(at: object) -> tuple[str, Envelope[str]]:
        job_id = str(at)
        return job_id, Envelope(Job(job_id, "default"), job_id, _RECORD, _AT)

    parted = dedup("dedup", op.map("envelope", read, enveloped), lambda envelope: envelope.body, DedupPolicy())
    counted = op.stateful_map(
        "count", op.key_on("one", parted.fresh, lambda _: "all"), lambda state, _: ((state or 0) + 1, (state or 0) + 1)
    )
    last = op.filter_value("last", counted, lambda number: number == count)
    op.output("fresh", op.map("f", last, lambda item: str(item[1])), TestingSink(fresh))
    op.output("repeats", op.map("r", parted.repeats, lambda item: item[0]), TestingSink(repeats))
    return flow


def _run(directory: Path, count: int) -> _Part:
    """One process's part: whatever comes next on the recovery directory."""
    fresh: list[str] = []
    repeats: list[str] = []
    began = time.monotonic()
    config = RecoveryConfig(str(directory))
    cluster_main(_flow(count, fresh, repeats), [], 0, epoch_interval=timedelta(seconds=1), recovery_config=config)
    status = Path("/proc/self/status").read_text()
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    return _Part(fresh, repeats, time.monotonic() - began, peak_kb / 1024)


@click.command()
@click.option("--ids", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dedup_bench(ids: int, *, as_json: bool) -> None:
    """Fill the memory of `dedup` with IDS live ids, restart, and recognise the first of them."""
    with tempfile.TemporaryDirectory(prefix="headrace-dedup-") as name:
        init_db_dir(Path(name), RECOVERY_PARTITIONS)
        parts: list[_Part] = []
        for _ in range(2):
            command = [sys.executable, "-m", "benchmarks.dedup", name, str(ids)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # ourselves
            parts.append(_Part(**json.loads(done.stdout)))
        filled, restored = parts
        if filled.fresh != [str(ids)] or restored.repeats != [f"job-{0:012d}"]:
            raise RuntimeError(f"the ids were not remembered: {parts}")
        snapshot_mb = sum(file.stat().st_size for file in Path(name).iterdir()) / 1e6
    figures = {
        "ids": ids,
        "rss_mb": round(max(filled.rss_mb, restored.rss_mb), 1),
        "restore_s": round(restored.seconds, 2),
        "fill_events_s": round(ids / filled.seconds),
        "snapshot_mb": round(snapshot_mb, 1),
    }
    aims = [
        Aim(
            "rss_mb",
            f"{RSS_AIM_MB:.0f} MB at most, the whole process",
            met=max(filled.rss_mb, restored.rss_mb) <= RSS_AIM_MB,
        ),
        Aim("restore_s", f"{RESTORE_AIM_S:.0f} s at most", met=restored.seconds <= RESTORE_AIM_S),
    ]
    emit("dedup", figures, aims, as_json=as_json)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(Path(sys.argv[1]), int(sys.argv[2])))))  # noqa: T201  # read by the process above
