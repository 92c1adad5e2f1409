"""Headings become sections whose labels name the way to them: "Installation > Linux"."""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.parsers.port import Section

MAX_SECTIONS = 2_000
"""Sections travel inside a Kafka message, whose usual limit is 1 MB."""

MAX_LABEL_CHARS = 200
"""A label is shown beside a citation; a longer one is no heading but text in large letters."""


@dataclass(frozen=True)
class Heading:
    """One heading as it stands in the document."""

    start: int  # offset into the text, in characters
    level: int  # 1 is the outermost
    text: str


def outline(headings: Sequence[Heading]) -> tuple[Section, ...]:
    """One section per heading, in order.

    A title, that is a first heading alone on the outermost level, is left out of the labels below it. Beyond
    MAX_SECTIONS headings the deepest levels are left out: labels get coarser, never wrong.
    """
    kept = [heading for heading in headings if heading.text]
    while len(kept) > MAX_SECTIONS:
        deepest = max(heading.level for heading in kept)
        kept = [heading for heading in kept if heading.level < deepest]
    titled = bool(kept) and all(heading.level > kept[0].level for heading in kept[1:])
    path: list[Heading] = []
    sections = []
    for heading in kept:
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        shown = path[1:] if titled and len(path) > 1 else path
        label = " > ".join(step.text for step in shown)
        sections.append(Section(heading.start, shorten(label)))
    return tuple(sections)


def shorten(label: str) -> str:
    """At most MAX_LABEL_CHARS characters; an ellipsis shows that some are missing."""
    return label if len(label) <= MAX_LABEL_CHARS else label[: MAX_LABEL_CHARS - 1] + "…"
