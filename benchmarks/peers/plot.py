"""`plot.py growth|soak FILE`: draws a picture of the rows that come as JSON on its stdin."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

mpl.use("agg")
DPI = 80


def draw_growth(sizes: list[dict[str, Any]], target: Path) -> None:
    """CPU per event, rate and memory by the number of events."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    shown = (
        ("cpu_s_per_100k", "CPU s per 100,000 events"),
        ("events_s", "events/s"),
        ("peak_rss_mb", "peak resident memory, MB"),
    )
    for axis, (name, title) in zip(axes, shown, strict=True):
        for way in dict.fromkeys(each["way"] for each in sizes):
            of = [each for each in sizes if each["way"] == way]
            axis.plot([each["events"] for each in of], [each[name] for each in of], marker="o", label=way)
        axis.set(title=title, xlabel="events", xscale="log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(bottom=0)
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=DPI)


def draw_soak(samples: list[dict[str, float]], target: Path) -> None:
    """Memory and lag over time."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    minutes = [each["at_s"] / 60 for each in samples]
    axes[0].plot(minutes, [each["rss_mb"] for each in samples])
    axes[0].set(title="answer flow, 50 requests/s: resident memory, MB")
    axes[1].plot(minutes, [each["lag"] for each in samples], color="tab:orange")
    axes[1].set(title="lag, requests", xlabel="minutes")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=DPI)


def main() -> None:
    """Draw it."""
    draw = {"growth": draw_growth, "soak": draw_soak}[sys.argv[1]]
    draw(json.load(sys.stdin), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
