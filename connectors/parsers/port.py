"""The port through which documents become text."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Section:
    """A place in the text that a citation can name."""

    start: int  # offset into ParsedDocument.text, in characters
    label: str  # "page 7", "Installation > Linux"


@dataclass(frozen=True)
class Attachment:
    """A document inside of another one, as it was sent along: nothing about it has been checked."""

    name: str  # of a file, never a path; made up ("part 3") if it has none
    media_type: str  # as the sender says
    data: bytes


@dataclass(frozen=True)
class ParsedDocument:
    """What a parser found. `text` is never blank; sections are in order of `start`."""

    text: str
    media_type: str  # as found in the content, not as named: "application/pdf"
    title: str | None
    sections: tuple[Section, ...] = ()
    attachments: tuple[Attachment, ...] = ()  # of a mail; what they hold is not part of `text`


class Parser(Protocol):
    """Turns bytes into text without ever taking the flow down."""

    async def parse(self, data: bytes, *, name: str) -> ParsedDocument:
        """Parse one document.

        Cancelling the call kills whatever works on it. `name` (a URI or file name) is a hint and shows in messages.

        Raises:
            Poison: encrypted, malformed, of an unknown type, no extractable text, or its parser crashed on it.
            Retryable: the machine failed, not the document (no worker could be started).
        """
        ...

    async def close(self) -> None:
        """End all workers."""
        ...
