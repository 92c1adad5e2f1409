"""Word documents (DOCX) to text: paragraphs, list items, tables row by row, notes at the end; headings become sections.

Left out: headers and footers (they repeat on every page), tables of contents, deleted and moved-away text, comments,
pictures.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from connectors.parsers import ooxml
from connectors.parsers.archive import Archive
from connectors.parsers.bounded_text import BoundedText
from connectors.parsers.headings import Heading, outline, shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

_SKIPPED = frozenset({"Fallback", "moveFrom", "rt", "del"})  # said again elsewhere, or no longer said
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)  # the built-in styles have these names in every language
_BODY_TEXT = 9  # as an outline level
_MAX_ANCESTORS = 20  # of a style; a loop must end


@dataclass(frozen=True)
class _Style:
    """What a paragraph style says about its paragraphs."""

    name: str = ""
    parent: str = ""
    level: int | None = None  # 0 is the outermost, as in w:outlineLvl
    listed: bool = False


@dataclass
class _Paragraph:
    """A paragraph while it is read."""

    words: list[str] = field(default_factory=list)
    style: str = ""
    level: int | None = None
    listed: bool | None = None


def parse(data: bytes, limits: Limits) -> ParsedDocument:
    """The text of a document, its footnotes and endnotes.

    Raises:
        Poison: damaged, without its main part, or beyond a limit.
    """
    archive = Archive(data, limits)
    found = ooxml.kind(archive)
    main = found[1] if found else "word/document.xml"
    styles = ooxml.related(archive, main, "styles")
    document = _Document(BoundedText(limits), _styles(archive, styles) if styles else {})
    document.read(ooxml.elements(archive, main, starts=True))
    for notes in ("footnotes", "endnotes"):
        part = ooxml.related(archive, main, notes)
        if part:
            document.read(ooxml.elements(archive, part, starts=True))
    title = ooxml.title(archive) or shorten(document.title) or None
    return ParsedDocument(str(document.text), MEDIA_TYPE, title, outline(document.headings))


def _styles(archive: Archive, part: str) -> dict[str, _Style]:
    """The paragraph styles by id, what they inherit included."""
    own: dict[str, _Style] = {}
    name, parent, level, listed = "", "", None, False
    for _, element in ooxml.elements(archive, part):
        value = ooxml.attribute(element, "val") or ""
        match ooxml.local(element):
            case "name":
                name = value
            case "basedOn":
                parent = value
            case "outlineLvl":
                level = _level(value)
            case "numId":
                listed = value != "0"
            case "style":
                own[ooxml.attribute(element, "styleId") or ""] = _Style(name, parent, level, listed)
                name, parent, level, listed = "", "", None, False
    return {style_id: _inherited(own, style_id) for style_id in own}


def _inherited(styles: dict[str, _Style], style_id: str) -> _Style:
    style = styles[style_id]
    level, listed, ancestor = style.level, style.listed, style
    for _ in range(_MAX_ANCESTORS):
        built_in = _HEADING.fullmatch(ancestor.name)
        if level is None and built_in:
            level = int(built_in[1]) - 1
        if ancestor.parent not in styles:
            break
        ancestor = styles[ancestor.parent]
        level = ancestor.level if level is None else level
        listed = listed or ancestor.listed
    return _Style(style.name, "", level, listed)


def _level(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) == 1 else None


class _Document:
    """The text of a document as its elements come in."""

    def __init__(self, text: BoundedText, styles: dict[str, _Style]) -> None:
        self.text = text
        self.headings: list[Heading] = []
        self.title = ""
        self._styles = styles
        self._paragraphs: list[_Paragraph] = []  # open ones: a text box stands inside of a paragraph
        self._cells: list[list[str]] = []  # of open table cells, what their paragraphs say
        self._rows: list[list[str]] = []  # of open table rows, their cells
        self._after = ""  # "row" or "item" if the last block was one: its like follows on the next line

    def read(self, events: Iterable[tuple[str, ooxml.Element]]) -> None:
        """Take in the elements of one part."""
        skipping = 0
        for event, element in events:
            name = ooxml.local(element)
            if event == "start":
                skipping += (
                    bool(skipping) or name in _SKIPPED or (name in {"footnote", "endnote"} and _is_rule(element))
                )
                if not skipping:
                    self._begin(name)
            elif skipping:
                skipping -= 1
            else:
                self._end(name, element)

    def _begin(self, name: str) -> None:
        match name:
            case "p":
                self._paragraphs.append(_Paragraph())
            case "tr":
                self._rows.append([])
            case "tc":
                self._cells.append([])

    def _end(self, name: str, element: ooxml.Element) -> None:
        match name:
            case "tc":
                cell = " ".join(self._cells.pop())
                if cell and self._rows:
                    self._rows[-1].append(cell)
            case "tr":
                self._add(" | ".join(self._rows.pop()), like="row")
            case "p" if self._paragraphs:
                self._end_paragraph(self._paragraphs.pop())
            case _ if self._paragraphs:
                self._end_in_paragraph(name, element, self._paragraphs[-1])

    def _end_in_paragraph(self, name: str, element: ooxml.Element, paragraph: _Paragraph) -> None:
        match name:
            case "t":
                paragraph.words.append(element.text or "")
            case "tab" if (parent := element.getparent()) is not None and ooxml.local(parent) == "tabs":
                pass  # where a tab stop is, not a tab
            case "tab" | "br" | "cr" | "noBreakHyphen":
                paragraph.words.append(_BREAKS[name])
            case "pStyle":
                paragraph.style = ooxml.attribute(element, "val") or ""
            case "outlineLvl":
                paragraph.level = _level(ooxml.attribute(element, "val") or "")
            case "numId":
                paragraph.listed = ooxml.attribute(element, "val") != "0"

    def _end_paragraph(self, paragraph: _Paragraph) -> None:
        style = self._styles.get(paragraph.style, _Style())
        lines = (" ".join(line.split()) for line in "".join(paragraph.words).split("\n"))
        text = "\n".join(line for line in lines if line)
        if style.name.lower().startswith("toc "):
            return
        level = style.level if paragraph.level is None else paragraph.level
        titles = style.name.lower() == "title"
        if self._cells:
            self._add(" ".join(text.split()))
        elif text and (titles or (level is not None and level < _BODY_TEXT)):
            heading = " ".join(text.split())
            self.title = self.title or heading
            self.headings.append(Heading(self._add(text), 1 if titles or level is None else level + 2, heading))
        elif paragraph.listed or (paragraph.listed is None and style.listed):
            self._add(f"- {text}" if text else "", like="item")
        else:
            self._add(text)

    def _add(self, block: str, *, like: str = "") -> int:
        """Append a block to what is open: a cell, or else the text; returns where in the text it begins."""
        if not block:
            return 0
        if self._cells:
            self._cells[-1].append(block)
            return 0
        start = self.text.add(block, apart="\n" if like and like == self._after else "\n\n")
        self._after = like
        return start


def _is_rule(note: ooxml.Element) -> bool:
    """The line above the footnotes is a footnote of its own type."""
    return (ooxml.attribute(note, "type") or "normal") != "normal"
