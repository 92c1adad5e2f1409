"""The process of a ProcessExecutor: `python -m connectors.executor_worker`. Reads calls, writes what became of them."""

import ctypes
import os
import pickle
import signal
import struct
import sys
from typing import BinaryIO

from schemas.errors import Poison

_LENGTH = struct.Struct(">Q")  # as in connectors.executors, which would bring asyncio with it
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve until the owner closes our input or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also while a call hangs and nobody reads our input
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what a function prints goes to standard error
    while True:
        header = requests.read(_LENGTH.size)
        if len(header) < _LENGTH.size:
            return
        (length,) = _LENGTH.unpack(header)
        _reply(replies, requests.read(length))


def _reply(replies: BinaryIO, request: bytes) -> None:
    try:
        function, arguments = pickle.loads(request)  # noqa: S301  # from our owner
        outcome: tuple[bool, object] = (False, function(*arguments))
        body = pickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001  # whatever it is, the owner wants to know
        body = _pickled(error)
    replies.write(_LENGTH.pack(len(body)) + body)
    replies.flush()


def _pickled(error: Exception) -> bytes:
    """The exception, if it survives the journey; else what can be said of it."""
    try:
        body = pickle.dumps((True, error))
        pickle.loads(body)  # noqa: S301  # our own
    except Exception:  # noqa: BLE001  # an exception's own pickling may raise anything
        return pickle.dumps((True, Poison(f"an exception that cannot be sent back: {type(error).__name__}")))
    return body


if __name__ == "__main__":
    main()
