"""Growth: what 4 and 16 times the events cost, with one worker and with two: threads, slices, or a cluster.

The work is the control section's. `plots/` gets a picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.peers.control.measured import SYSTEMS_BY_NAME, Bench, Whole, whole
from benchmarks.peers.control.work import events
from benchmarks.peers.drawing import drawn
from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim
from tests.kafka.apache_kafka import ApacheKafka

SYSTEMS = ("headrace",)
EVENTS = 25_000
QUICK_EVENTS = 1_000
TIMES = (1, 4, 16)
WAYS: Mapping[str, Mapping[str, str]] = {
    "one worker": {},
    "two workers": {"HEADRACE_WORKERS": "2"},
    "two slices": {"PEERS_TOGETHER": "slices"},
    "a cluster of two": {"PEERS_TOGETHER": "cluster"},
}
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
    """All sizes."""
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
    alone = [each for each in sizes if each.way == "one worker"]
    ratio = alone[-1].cpu_s_per_100k / alone[0].cpu_s_per_100k
    figures["headrace.cpu_per_event_16x_to_1x"] = round(ratio, 2)
    aims = [Aim("headrace.cpu_per_event_16x_to_1x", f"{LINEAR} at most: cost grows with the work", met=ratio <= LINEAR)]
    if not request.quick:
        figures |= drawn("growth", [asdict(each) for each in sizes])
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
