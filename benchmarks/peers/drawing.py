"""Pictures of what was measured, in `plots/`: drawn by matplotlib, in an environment of its own."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal

from benchmarks.peers.environments import HERE, Unavailable, python_of, variables

PLOTS = HERE / "plots"


def drawn(kind: Literal["growth", "soak"], rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Write `KIND.png`; the figure that a report has of that: none, or why there is no picture."""
    try:
        _draw(kind, rows)
    except Unavailable as error:
        return {"plots_unavailable": str(error)}
    return {}


def _draw(kind: str, rows: Sequence[Mapping[str, object]]) -> None:
    PLOTS.mkdir(exist_ok=True)
    command = [str(python_of("plots")), str(HERE / "plot.py"), kind, str(PLOTS / f"{kind}.png")]
    data = json.dumps(list(rows))
    done = subprocess.run(command, input=data, env=variables(), text=True, capture_output=True, check=False)  # noqa: S603  # our own
    if done.returncode != 0:
        raise Unavailable(f"plots: {done.stderr.strip().splitlines()[-1]}")
