"""Pictures of what was measured, in `plots/`: drawn by matplotlib, in an environment of its own."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.peers.environments import HERE, Unavailable, python_of, variables

PLOTS = HERE / "plots"


def draw(kind: Literal["growth", "soak"], rows: Sequence[Mapping[str, object]], target: Path = PLOTS) -> None:
    """Write `KIND.png`. Raises Unavailable if matplotlib cannot be had."""
    target.mkdir(exist_ok=True)
    command = [str(python_of("plots")), str(HERE / "plot.py"), kind, str(target / f"{kind}.png")]
    data = json.dumps(list(rows))
    done = subprocess.run(command, input=data, env=variables(), text=True, capture_output=True, check=False)  # noqa: S603  # our own
    if done.returncode != 0:
        raise Unavailable(f"plots: {done.stderr.strip().splitlines()[-1]}")
