"""A process that projects, to be killed: `python -m tests.gateway.projecting BOOTSTRAP FILE`."""

import sys
import time
from pathlib import Path

from gateway.hub import Hub
from gateway.projection import Projection
from gateway.read_model import ReadModel

if __name__ == "__main__":
    bootstrap, path = sys.argv[1:]
    read_model = ReadModel(Path(path))
    Projection(bootstrap, {}, read_model, Hub()).start()
    print("started", flush=True)  # noqa: T201  # what the test waits for
    time.sleep(600)
