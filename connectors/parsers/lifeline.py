"""Processes that do not outlive the one that started them, however it ends."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: nothing may be after a fork


def die_with_parent() -> None:
    """From here on, be killed when the thread that started this process ends; elsewhere than on Linux do nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
