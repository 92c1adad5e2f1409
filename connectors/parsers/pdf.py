"""PDF to text through PDFium. Call it in a process of its own: PDFium crashes on some hostile files, and under threads.

Each page with text is a section "page N", counted from 1 as a viewer counts them. Where tesseract is installed,
scanned pages are read by OCR; elsewhere they are left out of a PDF that has pages with text, as drawings always are.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pypdfium2  # type: ignore[import-untyped]  # it publishes no types
import pypdfium2.raw  # type: ignore[import-untyped]  # same

from connectors.parsers import ocr
from connectors.parsers.bounded_text import BoundedText
from connectors.parsers.headings import shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument, Section
from schemas.errors import Poison

_END_BYTES = 4096  # the standard wants the end mark in the last 1,024; servers append a little
_HYPHEN_AT_LINE_END = "\x02"  # PDFium's mark in place of the hyphen and the line end
_SENTENCE_ENDS = (".", ":", ";", "!", "?")
_POINTS_PER_INCH = 72
_MAX_SIDE = 30_000  # pixels; tesseract takes 32,767
_SCAN_SHARE = 0.5  # of the page; margins of scans are cut, photographs among text have text
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
    texts: dict[int, str] = {}
    length = 0
    for number in range(1, len(document) + 1):
        texts[number] = _page_text(document, number)
        length += len(texts[number])
        if length > limits.max_characters:
            raise Poison(f"more than {limits.max_characters} characters of text by page {number}; split the document")
    blank = [number for number, text in texts.items() if not text]
    if blank:
        texts |= _read_scans(document, blank, limits)
    text = BoundedText(limits)
    sections = [Section(text.add(texts[number]), f"page {number}") for number in sorted(texts) if texts[number]]
    return str(text), tuple(sections)


@contextmanager
def _page(document: pypdfium2.PdfDocument, number: int) -> Iterator[pypdfium2.PdfPage]:
    try:
        page = document[number - 1]
        try:
            yield page
        finally:
            page.close()
    except pypdfium2.PdfiumError as error:
        raise Poison(f"a malformed PDF: page {number} of {len(document)} cannot be read: {error}") from error


def _page_text(document: pypdfium2.PdfDocument, number: int) -> str:
    with _page(document, number) as page:
        textpage = page.get_textpage()
        text: str = textpage.get_text_bounded()
        textpage.close()
    text = text.replace(_HYPHEN_AT_LINE_END, "").replace("\r\n", "\n").replace("\r", "\n")
    return _reflow(text.strip())


def _read_scans(document: pypdfium2.PdfDocument, blank: Sequence[int], limits: Limits) -> dict[int, str]:
    """What OCR finds on the pages without text.

    Where others have text, only scans are worth the seconds that a page takes, not drawings and decoration.
    """
    has_text = len(blank) < len(document)
    if has_text and not ocr.installed():
        return {}
    shown = 0
    recognizer = ocr.Recognizer(limits)
    texts: dict[int, str] = {}
    for number in blank:
        with _page(document, number) as page:
            if not (_is_scan(page) if has_text else _shows_something(page)):
                continue
            shown += 1
            if not ocr.installed():
                raise Poison(f"a PDF without extractable text (scanned?): {ocr.MISSING}")
            picture = _greymap(page, limits)
        texts[number] = recognizer.read(picture, dpi=ocr.DPI).replace("\f", "").strip()
    if not has_text and not any(texts.values()):
        why = f"OCR found none on {shown} of its pages" if shown else "its pages show nothing"
        raise Poison(f"a PDF without extractable text: {why}")
    return texts


def _shows_something(page: pypdfium2.PdfPage) -> bool:
    objects: int = pypdfium2.raw.FPDFPage_CountObjects(page)
    return objects > 0


def _is_scan(page: pypdfium2.PdfPage) -> bool:
    """Pictures cover half of the page at least; a scan may come in strips, and inside of a form."""
    width, height = page.get_size()
    pictures = (pypdfium2.raw.FPDF_PAGEOBJ_IMAGE, pypdfium2.raw.FPDF_PAGEOBJ_FORM)
    covered = 0.0
    for each in page.get_objects(filter=pictures, max_depth=1):
        left, bottom, right, top = (ctypes.c_float() for _ in range(4))
        if pypdfium2.raw.FPDFPageObj_GetBounds(each, left, bottom, right, top):
            covered += (right.value - left.value) * (top.value - bottom.value)
    share: float = covered / max(1.0, width * height)
    return share >= _SCAN_SHARE


def _greymap(page: pypdfium2.PdfPage, limits: Limits) -> bytes:
    """The page as a portable greymap (PGM), smaller than usual if it is a poster."""
    width, height = (max(1.0, length) for length in page.get_size())
    scale = min(
        ocr.DPI / _POINTS_PER_INCH,
        _MAX_SIDE / max(width, height),
        (limits.max_pixels / width / height) ** 0.5,
    )
    bitmap = page.render(scale=scale, grayscale=True)
    try:
        rows = memoryview(bitmap.buffer).cast("B")
        stride, across = bitmap.stride, bitmap.width
        pixels = b"".join(rows[row * stride : row * stride + across] for row in range(bitmap.height))
        return b"P5 %d %d 255\n" % (across, bitmap.height) + pixels
    finally:
        bitmap.close()


def _reflow(text: str) -> str:
    """Join the lines of a paragraph: one that fills the width and does not end a sentence goes on in the next."""
    lines = text.split("\n")
    full = _FULL_LINE * max(len(line) for line in lines)
    parts = [lines[0]]
    for before, line in pairwise(lines):
        goes_on = len(before) >= full and not before.endswith(_SENTENCE_ENDS)
        parts += (" " if goes_on else "\n", line)
    return "".join(parts)
