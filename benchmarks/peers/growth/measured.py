"""Growth: what 4 and 16 times the events cost, in one process and in two, a cluster or slices; and a soak.

Memory must stay flat in it.

The work is the control section's. `plots/` gets a picture of each, by matplotlib in an environment of its own.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers.control.measured import SYSTEMS_BY_NAME, Bench, Whole, whole
from benchmarks.peers.control.work import events
from benchmarks.peers.environments import HERE, Unavailable, python_of, variables
from benchmarks.peers.growth.soak import Sample, soak
from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim
from tests.kafka.apache_kafka import ApacheKafka

SYSTEMS = ("headrace",)
EVENTS = 25_000
QUICK_EVENTS = 1_000
TIMES = (1, 4, 16)
WAYS: Mapping[str, Mapping[str, str]] = {
    "one process": {},
    "two slices": {"PEERS_TOGETHER": "slices"},
    "a cluster of two": {"PEERS_TOGETHER": "cluster"},
}
PLOTS = HERE / "plots"
WARM = 1 / 6  # of a soak
FLAT = 0.05
LINEAR = 1.2


@dataclass(frozen=True)
class Size:
    """One size, run one way."""

    times: int
    events: int
    way: str
    events_s: float
    cpu_s_per_100k: float
    peak_rss_mb: float

    @classmethod
    def of(cls, times: int, count: int, way: str, run: Whole) -> "Size":
        """As it was measured."""
        return cls(
            times,
            count,
            way,
            round(run.events_s),
            round(run.cpu_s_per_100k, 2),
            round(run.peak_rss_mb, 1),
        )


def table(sizes: Sequence[Size]) -> str:
    """As text."""
    rows = ["   events               way  events/s  CPU s per 100,000  peak RSS MB"]
    rows += [
        f"{each.events:9,}  {each.way:>16}  {each.events_s:8,.0f}  {each.cpu_s_per_100k:17.2f}  "
        f"{each.peak_rss_mb:11.1f}"
        for each in sizes
    ]
    return "\n".join(rows)


def measure(request: Request) -> Findings:
    """All sizes, then the soak."""
    base = request.events or (QUICK_EVENTS if request.quick else EVENTS)
    sizes = [
        Size.of(times, base * times, way, run)
        for times in TIMES
        for way, run in _of_size(request, base * times).items()
    ]
    request.say(f"growth\n{table(sizes)}")
    figures: dict[str, object] = {}
    for each in sizes:
        name = f"headrace.{each.times}x.{each.way.replace(' ', '_')}"
        figures |= {
            f"{name}.events_s": each.events_s,
            f"{name}.cpu_s_per_100k": each.cpu_s_per_100k,
            f"{name}.peak_rss_mb": each.peak_rss_mb,
        }
    alone = [each for each in sizes if each.way == "one process"]
    ratio = alone[-1].cpu_s_per_100k / alone[0].cpu_s_per_100k
    figures["headrace.cpu_per_event_16x_to_1x"] = round(ratio, 2)
    aims = [Aim("headrace.cpu_per_event_16x_to_1x", f"{LINEAR} at most: cost grows with the work", met=ratio <= LINEAR)]
    samples: list[Sample] = []
    minutes = min(request.minutes, 1.0) if request.quick else request.minutes
    if minutes > 0:
        directory = request.directory / "soak"
        directory.mkdir()
        samples = soak(directory, minutes, request.directory / "samples", request.say)
        found, flat = soak_figures(samples)
        figures |= {f"headrace.soak.{name}": value for name, value in found.items()}
        aims.append(Aim("headrace.soak.rss_growth", f"{FLAT:.0%} at most once warm", met=flat))
    if not request.quick:
        try:
            draw(sizes, samples)
        except Unavailable as error:
            figures["plots_unavailable"] = str(error)
    return Findings(figures, aims)


def _of_size(request: Request, count: int) -> dict[str, Whole]:
    directory = request.directory / str(count)
    directory.mkdir()
    broker = ApacheKafka(directory / "kafka")
    broker.create()
    try:
        bench = Bench(broker, events(count), directory)
        system = SYSTEMS_BY_NAME["headrace"]
        found: dict[str, Whole] = {}
        for way, told in WAYS.items():
            found[way] = whole(bench, system, told)
            request.say(f"{count:,} events, {way}: {found[way]}")
        return found
    finally:
        broker.stop()


def soak_figures(samples: Sequence[Sample]) -> tuple[dict[str, object], bool]:
    """What a soak showed; and whether memory stayed flat: its last sixth beside the one after the first."""
    sixth = max(round(len(samples) * WARM), 1)
    early, late = samples[sixth : 2 * sixth] or samples, samples[-sixth:]
    before = sum(each.rss_mb for each in early) / len(early)
    after = sum(each.rss_mb for each in late) / len(late)
    growth = after / before - 1
    last = samples[-1]
    figures: dict[str, object] = {
        "minutes": round(last.at_s / 60, 1),
        "sent": last.sent,
        "answered": last.results,
        "rss_mb_early": round(before, 1),
        "rss_mb_late": round(after, 1),
        "rss_growth": round(growth, 4),
        "lag_max": max(each.lag for each in samples),
        "lag_last": last.lag,
        "cpu_s_per_request": round(last.cpu_s / max(last.results, 1), 4),
    }
    return figures, growth <= FLAT


def draw(sizes: Sequence[Size], samples: Sequence[Sample], target: Path = PLOTS) -> None:
    """Pictures of what there is. Raises Unavailable if matplotlib cannot be had."""
    target.mkdir(exist_ok=True)
    data = json.dumps({"growth": [asdict(each) for each in sizes], "soak": [asdict(each) for each in samples]})
    command = [str(python_of("plots")), str(HERE / "growth" / "plot.py"), str(target)]
    done = subprocess.run(command, input=data, env=variables(), text=True, capture_output=True, check=False)  # noqa: S603  # our own
    if done.returncode != 0:
        raise Unavailable(f"plots: {done.stderr.strip().splitlines()[-1]}")
