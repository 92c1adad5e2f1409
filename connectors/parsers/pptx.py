"""PowerPoint presentations (PPTX) to text: each slide with text is a section "slide 3", its speaker notes included.

Slides count from 1 in the order of the presentation, hidden ones too. Left out: masters, charts, diagrams, pictures.
"""

from connectors.parsers import ooxml
from connectors.parsers.archive import Archive
from connectors.parsers.bounded_text import BoundedText
from connectors.parsers.headings import shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument, Section
from schemas.errors import Poison

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.presentationml.presentation"

_SKIPPED = frozenset({"Fallback", "fld"})  # said again elsewhere; a slide's number or date
_TITLES = frozenset({"title", "ctrTitle"})
_FURNITURE = frozenset({"dt", "ftr", "hdr", "sldNum"})  # placeholders that repeat on every slide


def parse(data: bytes, limits: Limits) -> ParsedDocument:
    """The text of all slides, in order.

    Raises:
        Poison: damaged, a slide is missing, or beyond a limit.
    """
    archive = Archive(data, limits)
    found = ooxml.kind(archive)
    main = found[1] if found else "ppt/presentation.xml"
    slides = _slides(archive, main)
    if len(slides) > limits.max_pages:
        raise Poison(f"a presentation of {len(slides)} slides; the limit is {limits.max_pages}")
    text = BoundedText(limits)
    sections = []
    title = ooxml.title(archive)
    for number, slide in enumerate(slides, start=1):
        shapes = _Shapes(archive, slide)
        title = title or shorten(shapes.title) or None
        notes = ooxml.related(archive, slide, "notesSlide")
        said = "\n\n".join(_Shapes(archive, notes).blocks) if notes else ""
        blocks = [*shapes.blocks, f"Notes: {said}"] if said else shapes.blocks
        if blocks:
            sections.append(Section(text.add("\n\n".join(blocks)), f"slide {number}"))
    return ParsedDocument(str(text), MEDIA_TYPE, title, tuple(sections))


def _slides(archive: Archive, main: str) -> list[str]:
    """The names of the slides' parts, in the order in which they are shown."""
    targets = ooxml.relationships(archive, main)
    ids = [
        ooxml.relationship_id(element)
        for _, element in ooxml.elements(archive, main)
        if ooxml.local(element) == "sldId"
    ]
    missing = next((each for each in ids if each not in targets), None)
    if missing is not None:
        raise Poison(f"a damaged presentation: it has no slide {missing}")
    return [targets[each].target for each in ids]


class _Shapes:
    """The texts of one slide or of its notes: a block per shape, a line per paragraph or table row."""

    def __init__(self, archive: Archive, part: str) -> None:
        self.blocks: list[str] = []
        self.title = ""
        self._lines: list[str] = []
        self._words: list[str] = []  # of the open paragraph
        self._cell: list[str] | None = None  # paragraphs of the open table cell
        self._row: list[str] = []
        self._placeholder = ""  # what the open shape is one for
        skipping = 0
        for event, element in ooxml.elements(archive, part, starts=True):
            name = ooxml.local(element)
            if event == "start":
                skipping += bool(skipping) or name in _SKIPPED
                if name == "tc":
                    self._cell = []
            elif skipping:
                skipping -= 1
            else:
                self._end(name, element)
        self._end_shape()

    def _end(self, name: str, element: ooxml.Element) -> None:
        match name:
            case "t":
                self._words.append(element.text or "")
            case "br" | "tab":
                self._words.append(" ")
            case "p":
                line = " ".join("".join(self._words).split())
                self._words = []
                if line:
                    (self._lines if self._cell is None else self._cell).append(line)
            case "tc":
                self._row += [" ".join(self._cell)] if self._cell else []
                self._cell = None
            case "tr":
                self._lines += [" | ".join(self._row)] if self._row else []
                self._row = []
            case "ph":
                self._placeholder = element.get("type") or "body"
            case "sp" | "graphicFrame":
                self._end_shape()

    def _end_shape(self) -> None:
        if self._lines and self._placeholder not in _FURNITURE:
            self.blocks.append("\n".join(self._lines))
            if self._placeholder in _TITLES:
                self.title = self.title or " ".join(self._lines)
        self._lines, self._placeholder = [], ""
