"""Structured logs on standard error: one JSON object a line, what libraries say included.

Of an exception that is none of ours only its type and its place are logged: its message may hold what somebody sent.
"""

import atexit
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from io import StringIO
from types import TracebackType

import structlog
from confluent_kafka import KafkaException
from structlog.typing import EventDict, WrappedLogger

from schemas.errors import HeadraceError

log = structlog.get_logger()

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FRAMES = 5  # of where an exception came from
MESSAGE_MAX_CHARS = 500  # of what a library says


class _StandardError(StringIO):
    """Standard error, as long as it takes what is said: a full disk or a reader that has gone ends no work."""

    def write(self, text: str) -> int:
        """Say it."""
        with suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


class _Libraries(logging.Handler):
    """What libraries log. The first line alone: asyncio shows whole exceptions in those that follow."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it as we do."""
        with suppress(Exception):
            say = log.error if record.levelno >= logging.ERROR else log.warning
            message = record.getMessage().partition("\n")[0][:MESSAGE_MAX_CHARS]
            say(message, logger=record.name, exc_info=record.exc_info or None)


def shown(error: BaseException) -> str:
    """What may be said of an error: its message if it is ours, the system's or Kafka's."""
    return str(error) if isinstance(error, HeadraceError | OSError | KafkaException) else type(error).__name__


def _place(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Of an exception its type, what may be said of it, and where it came from."""
    info = event.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        event["error_type"], event["error"] = type(error).__name__, shown(error)
        event["at"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    return event


def _uncaught(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    del kind
    log.error("unexpected exception", exc_info=error.with_traceback(at))


def _uncaught_in_thread(said: threading.ExceptHookArgs) -> None:
    if said.exc_value is not None and not isinstance(said.exc_value, SystemExit):
        log.error("unexpected exception", thread=said.thread.name if said.thread else None, exc_info=said.exc_value)


def _say_no_more() -> None:
    """All is said by then; but native libraries (Triton's, below PyTorch) list what they think leaks, in 30 lines."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def configure_logs(level: str) -> None:
    """Log `level` and above, of libraries warnings and errors. Nothing in Headrace logs prompts, texts or secrets."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _place,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(_StandardError()),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Libraries()], level=max(LEVELS[level], logging.WARNING), force=True)
    logging.captureWarnings(capture=True)
    atexit.register(_say_no_more)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
