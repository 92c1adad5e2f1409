"""Text for terminals: aligned columns, times, and no control characters from what strangers sent."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import click


def printable(text: str) -> str:
    """`text` on one line, with what a terminal might obey shown as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def cut(text: str, width: int) -> str:
    """At most `width` characters; what was cut ends in an ellipsis."""
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def at(moment: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def columns(rows: Sequence[Sequence[str]], *, width: int, least_last: int = 30) -> Iterator[str]:
    """Rows as aligned lines of `width`; the last cell gets what is left, or a line of its own where that is little."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    left = width - sum(widths) - 2 * len(widths)
    for row in rows:
        line = "  ".join(cell.ljust(size) for cell, size in zip(row[:-1], widths, strict=True))
        if left >= least_last:
            yield f"{line}  {cut(row[-1], left)}".rstrip()
        else:
            yield line.rstrip()
            yield f"    {cut(row[-1], width - 4)}"


class ShortText(click.ParamType[str]):
    """A text that fits into the event."""

    name = "TEXT"

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refused if it is too long."""
        text = str(value)
        if len(text) > self._max_chars:
            self.fail(f"{len(text)} characters; at most {self._max_chars}", param, ctx)
        return text
