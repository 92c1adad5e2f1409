"""HTML to readable text: blocks become lines, headings become sections, scripts, styles and navigation are left out.

libxml2's own limits (256 levels, 10 MB per value) stay on. A page beyond them is refused: libxml2 would silently drop
the rest of it.
"""

import re

import lxml.etree
import lxml.html

from connectors.parsers import text
from connectors.parsers.headings import Heading, outline, shorten
from connectors.parsers.port import ParsedDocument
from schemas.errors import Poison

_SKIPPED = frozenset(
    {
        "button",
        "head",
        "iframe",
        "nav",
        "noscript",
        "object",
        "script",
        "select",
        "style",
        "svg",
        "template",
        "textarea",
    }
)
_LINES = frozenset({"address", "br", "caption", "dd", "div", "dt", "figcaption", "li", "summary", "tr"})
_PARAGRAPHS = frozenset(
    {"article", "aside", "blockquote", "body", "details", "dl", "fieldset", "figure", "footer", "form", "header", "hr"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "main", "ol", "p", "pre", "section", "table", "ul"}
)
_LEVELS = {f"h{level}": level for level in range(1, 7)}
_MAX_ATTRIBUTES = 5_000  # 300,000 take libxml2 minutes; generated pages have some dozens
_ATTRIBUTE = r"""[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"?|'[^']*+'?|[^\s>]*+))?+"""  # HTML standard, 13.2.5.32
_MARKUP = re.compile(  # possessive throughout: no page takes quadratic time
    r"<!-(?=-)(?:(?s:.*?)--!?>|(?s:.*))"
    rf"|<(?P<name>[A-Za-z][^\s/>]*+)(?:(?P<too_many>(?:{_ATTRIBUTE}){{{_MAX_ATTRIBUTES + 1}}})|(?:{_ATTRIBUTE})*+)"
)
_RAW_TEXT_END = re.compile(r"</(?:script|style)", re.IGNORECASE)
_PROLOG_BYTES = 1024  # where browsers look for a declared encoding (HTML standard, 13.2.3.2)
_CHARSET = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)


def parse(data: bytes) -> ParsedDocument:
    """The visible text of a page.

    Raises:
        Poison: no element at all, or beyond libxml2's limits.
    """
    root = _tree(_decode(data))
    page = _read(root)
    title = " ".join((root.findtext("head/title") or "").split())
    title = title or next((heading.text for heading in page.headings if heading.level == 1), "")
    return ParsedDocument("".join(page.parts), "text/html", shorten(title) or None, outline(page.headings))


def _decode(data: bytes) -> str:
    """A byte order mark outranks a declared encoding, which outranks what the bytes look like."""
    declared = None
    if text.encoding_by_mark(data) is None and text.utf16_without_mark(data) is None:
        prolog = data[:_PROLOG_BYTES]
        declared = _XML_ENCODING.match(prolog) or _CHARSET.search(prolog)
    if declared is not None:
        encoding = text.encoding_by_label(declared[1].decode("ascii"))
        if encoding is not None:
            return data.decode(encoding, errors="replace")
    decoded = text.decode(data)
    return data.decode("utf-8", errors="replace") if decoded is None else decoded


def _check_attributes(page: str) -> None:
    """Raise Poison for a tag with thousands of attributes, each of which libxml2 compares with all others."""
    position = 0
    while found := _MARKUP.search(page, position):
        if found["too_many"] is not None:
            raise Poison(f"an HTML page with more than {_MAX_ATTRIBUTES} attributes in one tag")
        position = found.end()
        if (found["name"] or "").lower() in {"script", "style"}:
            end = _RAW_TEXT_END.search(page, position)
            position = end.end() if end else len(page)


def _tree(page: str) -> lxml.html.HtmlElement:
    _check_attributes(page)
    # Encoded again, since lxml refuses a str that declares an encoding.
    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = lxml.html.document_fromstring(page.encode("utf-8", errors="replace"), parser=parser)
    except lxml.etree.ParserError as error:
        raise Poison("an HTML page without any element") from error
    except lxml.etree.XMLSyntaxError as error:
        if error.code == lxml.etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from error
        raise Poison("an HTML page that cannot be parsed at all") from error
    found = {entry.type_name for entry in parser.error_log}
    if "ERR_NO_MEMORY" in found:
        raise MemoryError
    if "ERR_RESOURCE_LIMIT" in found:
        raise Poison("an HTML page beyond the parser's limits: more than 256 levels deep, or one value over 10 MB")
    return root


class _Page:
    """Text as a browser would lay it out: white space collapsed, blocks on lines of their own."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.headings: list[Heading] = []
        self._length = 0
        self._line_ends = 0  # to write before the next word
        self._gap = ""  # to write before the next word if it stands on the same line
        self._bullet = ""  # to write before the next word in any case
        self._open_headings: list[tuple[int, int]] = []  # how many parts and characters stand before each
        self._open_pre = 0

    def begin(self, tag: str) -> None:
        """An element begins."""
        self._break_line(tag)
        if tag in _LEVELS:
            self._open_headings.append((len(self.parts), self._length))
        elif tag in {"td", "th"}:
            self._gap = " | "
        elif tag == "li":
            self._bullet = "- "
        elif tag == "pre":
            self._open_pre += 1

    def end(self, tag: str) -> None:
        """An element ends."""
        self._break_line(tag)
        if tag in _LEVELS:
            parts_before, start = self._open_headings.pop()
            written = "".join(self.parts[parts_before:])
            start += len(written) - len(written.lstrip())
            self.headings.append(Heading(start, _LEVELS[tag], " ".join(written.split())))
        elif tag == "li":
            self._bullet = ""
        elif tag == "pre":
            self._open_pre -= 1

    def write(self, words: str) -> None:
        """Append running text, or the content of <pre> as it is."""
        verbatim = self._open_pre > 0
        content = words if verbatim else " ".join(words.split())
        if self._line_ends:
            content = content.lstrip("\n")
        if not content.strip() and (self._line_ends or not verbatim):
            self._gap = self._gap or (" " if words else "")
            return
        if self.parts and self._line_ends:
            self._append("\n" * self._line_ends)
        elif self.parts and not verbatim:
            self._append(self._gap or (" " if words[0].isspace() else ""))
        self._append(self._bullet + content)
        self._line_ends, self._bullet = 0, ""
        self._gap = " " if not verbatim and words[-1].isspace() else ""

    def _break_line(self, tag: str) -> None:
        line_ends = 2 if tag in _PARAGRAPHS else 1 if tag in _LINES else 0
        if line_ends:
            self._line_ends = max(self._line_ends, line_ends)
            self._gap = ""

    def _append(self, part: str) -> None:
        self.parts.append(part)
        self._length += len(part)


def _read(root: lxml.html.HtmlElement) -> _Page:
    """Walk the tree without recursion."""
    page = _Page()
    walk = lxml.etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        tag = str(element.tag)
        skipped = tag in _SKIPPED or element.get("hidden") is not None or element.get("role") == "navigation"
        if event == "start":
            if skipped:
                walk.skip_subtree()
            else:
                page.begin(tag)
                page.write(element.text or "")
        else:
            if not skipped:
                page.end(tag)
            page.write(element.tail or "")
    return page
