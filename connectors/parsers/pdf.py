"""PDF to text through PDFium. Call it in a process of its own: PDFium crashes on some hostile files, and under threads.

Each page with text is a section "page N", counted from 1 as a viewer counts them.
"""

from itertools import pairwise

import pypdfium2  # type: ignore[import-untyped]  # it publishes no types
import pypdfium2.raw  # type: ignore[import-untyped]  # same

from connectors.parsers.headings import shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument, Section
from schemas.errors import Poison

_END_BYTES = 4096  # the standard wants the end mark in the last 1,024; servers append a little
_HYPHEN_AT_LINE_END = "\x02"  # PDFium's mark in place of the hyphen and the line end
_SENTENCE_ENDS = (".", ":", ";", "!", "?")
_FULL_LINE = 0.75  # of the page's longest line, in characters
_PASSWORD_ERRORS = frozenset({pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY})


def parse(data: bytes, limits: Limits | None = None) -> ParsedDocument:
    """The text of all pages, in order.

    Raises:
        Poison: encrypted, malformed, cut off, too many pages or characters, or no text on any page.
    """
    limits = limits or Limits()
    if b"%%EOF" not in data.rstrip(b"\0\r\n\t ")[-_END_BYTES:]:
        # PDFium would repair it and return the pages that are left.
        raise Poison("a PDF that ends in the middle (no %%EOF at its end); upload it again")
    document = _open(data)
    try:
        if len(document) > limits.max_pages:
            raise Poison(f"a PDF of {len(document)} pages; the limit is {limits.max_pages}")
        text, sections = _pages(document, limits)
        title = " ".join(document.get_metadata_value("Title").split())
    finally:
        document.close()
    return ParsedDocument(text, "application/pdf", shorten(title) or None, sections)


def _open(data: bytes) -> pypdfium2.PdfDocument:
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code in _PASSWORD_ERRORS:
            raise Poison("an encrypted PDF; upload it without its password") from error
        raise Poison(f"a malformed PDF: {error}") from error
    if len(document) == 0:
        document.close()
        raise Poison("a malformed PDF: it has no pages")
    return document


def _pages(document: pypdfium2.PdfDocument, limits: Limits) -> tuple[str, tuple[Section, ...]]:
    parts: list[str] = []
    sections: list[Section] = []
    length = 0
    for number in range(1, len(document) + 1):
        text = _page_text(document, number)
        if not text:
            continue
        sections.append(Section(length, f"page {number}"))
        parts.append(text)
        length += len(text) + len("\n\n")
        if length > limits.max_characters:
            raise Poison(f"more than {limits.max_characters} characters of text by page {number}; split the document")
    if not parts:
        raise Poison("a PDF without extractable text (scanned?); run OCR on it first")
    return "\n\n".join(parts), tuple(sections)


def _page_text(document: pypdfium2.PdfDocument, number: int) -> str:
    try:
        page = document[number - 1]
        try:
            textpage = page.get_textpage()
            text: str = textpage.get_text_bounded()
            textpage.close()
        finally:
            page.close()
    except pypdfium2.PdfiumError as error:
        raise Poison(f"a malformed PDF: page {number} of {len(document)} cannot be read: {error}") from error
    text = text.replace(_HYPHEN_AT_LINE_END, "").replace("\r\n", "\n").replace("\r", "\n")
    return _reflow(text.strip())


def _reflow(text: str) -> str:
    """Join the lines of a paragraph: one that fills the width and does not end a sentence goes on in the next."""
    lines = text.split("\n")
    full = _FULL_LINE * max(len(line) for line in lines)
    parts = [lines[0]]
    for before, line in pairwise(lines):
        goes_on = len(before) >= full and not before.endswith(_SENTENCE_ENDS)
        parts += (" " if goes_on else "\n", line)
    return "".join(parts)
