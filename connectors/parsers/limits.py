"""How much of a document the parsers take on. What is beyond is refused with Poison, never cut off silently."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Guards against documents that would keep every later step busy for hours."""

    max_characters: int = 10_000_000  # about 3,000 dense pages, 40,000 chunks; the Bible has 4.4 million
    max_pages: int = 5_000  # of a PDF; the longest manuals have about 3,000
