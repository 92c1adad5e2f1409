"""A virtual environment for each peer, made by pip when it is first needed: no peer becomes a dependency of Headrace.

What is installed is pinned in `requirements/NAME.txt`. An environment is made anew when that file changes. One that
cannot be made is reported with pip's own reason, and never silently left out.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_VENVS = HERE / ".venvs"
_INSTALL_S = 1800.0


class Unavailable(Exception):
    """A peer cannot be installed or started here; says why."""


def python_of(name: str) -> Path:
    """The interpreter of the environment `name`; made first if it is missing. Raises Unavailable, saying why.

    `headrace` is the environment that this process runs in.
    """
    if name == "headrace":
        return Path(sys.executable)
    requirements = HERE / "requirements" / f"{name}.txt"
    if not requirements.exists():
        raise Unavailable(f"no {requirements.relative_to(ROOT)}")
    target = _VENVS / name
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    made = target / "made-from"
    _VENVS.mkdir(exist_ok=True)
    with FileLock(_VENVS / f"{name}.lock"):
        if not made.exists() or made.read_text() != wanted:
            shutil.rmtree(target, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(target)])
            _run([str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
            made.write_text(wanted)
    return target / "bin" / "python"


def variables(**more: str) -> dict[str, str]:
    """The environment variables of a peer's process: it finds this checkout's `schemas`, and nothing of our venv."""
    kept = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONHOME"}}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


def versions_of(name: str) -> dict[str, str]:
    """The installed versions of what its requirements name; none for `headrace`. Raises Unavailable."""
    if name == "headrace":  # which every report has
        return {}
    python = python_of(name)
    lines = (HERE / "requirements" / f"{name}.txt").read_text().splitlines()
    packages = [re.split(r"[\[=]", line)[0] for line in lines]
    program = "import sys, importlib.metadata as m; print('\\n'.join(m.version(each) for each in sys.argv[1:]))"
    return dict(zip(packages, _run([str(python), "-c", program, *packages]).split(), strict=True))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # Python and pip of our own environments
            command, capture_output=True, text=True, check=False, timeout=_INSTALL_S
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command)}: not done in {_INSTALL_S:.0f} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-3:]
        raise Unavailable(f"{' '.join(command[1:4])} failed: {' / '.join(last)}")
    return done.stdout
