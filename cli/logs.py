"""Structured logs on standard error: one JSON object a line."""

import logging
import sys
from contextlib import suppress
from io import StringIO

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _StandardError(StringIO):
    """Standard error, as long as it takes what is said: a full disk or a reader that has gone ends no work."""

    def write(self, text: str) -> int:
        """Say it."""
        with suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


def configure_logs(level: str) -> None:
    """Log `level` and above. Nothing in Headrace logs prompts, document text or secrets."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(_StandardError()),
        cache_logger_on_first_use=True,
    )
