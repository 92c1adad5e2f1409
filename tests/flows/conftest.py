"""An ingest flow on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.event_loop import EventLoop
from tests.flows.mill import Mill


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    with EventLoop() as loop:
        mill = Mill(tmp_path, loop)
        yield mill
        loop.run(mill.remembering.close(), timeout_s=30)
        loop.run(mill.vectors.close(), timeout_s=30)
