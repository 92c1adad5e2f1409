"""PDF to text through PDFium. Call it in a process of its own: PDFium crashes on some hostile files, and under threads.

Each page with text is a section "page N", counted from 1 as a viewer counts them. A page that shows something, but no
text, is read by OCR where tesseract is installed; elsewhere such pages are left out of a PDF that has others.
"""

from itertools import pairwise

import pypdfium2  # type: ignore[import-untyped]  # it publishes no types
import pypdfium2.raw  # type: ignore[import-untyped]  # same

from connectors.parsers import ocr
from connectors.parsers.headings import shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument, Section
from schemas.errors import Poison

_END_BYTES = 4096  # the standard wants the end mark in the last 1,024; servers append a little
_HYPHEN_AT_LINE_END = "\x02"  # PDFium's mark in place of the hyphen and the line end
_SENTENCE_ENDS = (".", ":", ";", "!", "?")
_POINTS_PER_INCH = 72
_MAX_SIDE = 30_000  # pixels; tesseract takes 32,767
_FULL_LINE = 0.75  # of the page's longest line, in characters
_PASSWORD_ERRORS = frozenset({pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY})


def parse(data: bytes, limits: Limits | None = None) -> ParsedDocument:
    """The text of all pages, in order.

    Raises:
        Poison: encrypted, malformed, cut off, too many pages or characters, no text on any page, OCR takes too long.
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
    scans = _Scans(limits)
    for number in range(1, len(document) + 1):
        text = _page_text(document, number, scans)
        if not text:
            continue
        sections.append(Section(length, f"page {number}"))
        parts.append(text)
        length += len(text) + len("\n\n")
        if length > limits.max_characters:
            raise Poison(f"more than {limits.max_characters} characters of text by page {number}; split the document")
    if not parts:
        raise Poison(f"a PDF without extractable text{scans.why_unread()}")
    return "\n\n".join(parts), tuple(sections)


class _Scans:
    """Pages that show something, but have no text."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._recognizer: ocr.Recognizer | None = None
        self._seen = 0

    def read(self, page: pypdfium2.PdfPage) -> str:
        """What OCR finds on a page; nothing without tesseract, or if the page shows nothing."""
        if pypdfium2.raw.FPDFPage_CountObjects(page) <= 0:
            return ""
        self._seen += 1
        if not ocr.installed():
            return ""
        self._recognizer = self._recognizer or ocr.Recognizer(self._limits)
        return self._recognizer.read(self._picture(page), dpi=ocr.DPI).replace("\f", "").strip()

    def why_unread(self) -> str:
        """The end of a sentence that says why no page has text."""
        if not self._seen:
            return ": its pages show nothing"
        return (
            f" (scanned?): OCR found none on {self._seen} pages" if self._recognizer else f" (scanned?): {ocr.MISSING}"
        )

    def _picture(self, page: pypdfium2.PdfPage) -> bytes:
        """The page as a portable greymap, smaller than usual if it is a poster."""
        width, height = (max(1.0, length) for length in page.get_size())
        scale = min(
            ocr.DPI / _POINTS_PER_INCH,
            _MAX_SIDE / max(width, height),
            (self._limits.max_pixels / width / height) ** 0.5,
        )
        bitmap = page.render(scale=scale, grayscale=True)
        try:
            rows = memoryview(bitmap.buffer).cast("B")
            stride, across = bitmap.stride, bitmap.width
            pixels = b"".join(rows[row * stride : row * stride + across] for row in range(bitmap.height))
            return b"P5 %d %d 255\n" % (across, bitmap.height) + pixels
        finally:
            bitmap.close()


def _page_text(document: pypdfium2.PdfDocument, number: int, scans: _Scans) -> str:
    try:
        page = document[number - 1]
        try:
            textpage = page.get_textpage()
            text: str = textpage.get_text_bounded()
            textpage.close()
            if not text.strip():
                return scans.read(page)
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
