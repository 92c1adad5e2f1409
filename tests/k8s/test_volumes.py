"""A recovery directory below a volume as Kubernetes mounts it: its root belongs to a group that may write."""

from pathlib import Path

import pytest

from connectors.kafka.recovery import RecoveryDirectory
from schemas.errors import Fatal


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What fsGroup makes of a new volume's root."""
    root = tmp_path / "data"
    root.mkdir()
    root.chmod(0o2775)
    return root


def test_a_flow_makes_its_own_directory_there_and_takes_it_again(volume: Path) -> None:
    for _ in range(2):
        with RecoveryDirectory(volume / "recovery" / "answer"):
            pass


def test_a_flow_refuses_what_kubernetes_has_opened_to_the_group(volume: Path) -> None:
    """Which it does at each mount, but for fsGroupChangePolicy: OnRootMismatch."""
    with RecoveryDirectory(volume / "recovery" / "answer"):
        pass
    for path in (volume, *volume.rglob("*")):
        path.chmod(path.stat().st_mode | (0o070 if path.is_dir() else 0o060))
    with pytest.raises(Fatal, match="others can reach it"), RecoveryDirectory(volume / "recovery" / "answer"):
        pass
