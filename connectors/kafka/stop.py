"""The wish to end: asked for once, by a signal handler or a failing part, and seen by everything that must finish."""

import threading
import time

_POLL_S = 0.05


class Stop:
    """Tells every part of a process to finish; sources read no more, and operators have until `deadline` to drain.

    May be used from any thread and from a signal handler. Once requested it stays requested, and the first deadline
    holds: a second Ctrl-C does not give the drain more time.
    """

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt the main thread inside request()

    def request(self, drain_s: float = 20.0) -> None:
        """Ask for the end; what is in flight may take `drain_s` more seconds."""
        with self._lock:
            if self._deadline is None:
                self._deadline = time.monotonic() + drain_s

    @property
    def requested(self) -> bool:
        """Whether the end has been asked for."""
        return self._deadline is not None

    @property
    def deadline(self) -> float | None:
        """When the drain must be over, on the clock of `time.monotonic`; None while nobody asked."""
        return self._deadline

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the end is asked for, or for `timeout_s` seconds; tells whether it was.

        It looks every 50 ms instead of waiting on a lock: a signal handler that runs inside that wait can deadlock.
        """
        until = time.monotonic() + timeout_s
        while not self.requested:
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL_S, left))
        return True
