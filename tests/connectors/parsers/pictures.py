"""Pictures of text, drawn by PDFium, in the formats that are simple enough to write by hand."""

import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pypdfium2  # type: ignore[import-untyped]  # it publishes no types
import pytest

from tests.connectors.parsers.building import png
from tests.connectors.parsers.conftest import make_pdf


def require_tesseract() -> None:
    """Skip where tesseract is missing; in CI that is a failure."""
    if shutil.which("tesseract") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("tesseract is not installed (tesseract-ocr)")


@dataclass(frozen=True)
class Picture:
    """An image in shades of grey."""

    width: int
    height: int
    rows: tuple[bytes, ...]

    def on_a_page(self) -> "Picture":
        """The same with white below, as high as a page."""
        below = self.width * 842 // 595 - self.height
        return Picture(self.width, self.height + below, self.rows + (b"\xff" * self.width,) * below)

    def png(self) -> bytes:
        return png(self.width, self.height, b"".join(b"\0" + row for row in self.rows))

    def bmp(self) -> bytes:
        """The bottom row first, each row a multiple of four bytes, all shades in the palette."""
        padded = b"".join(row + bytes(-len(row) % 4) for row in reversed(self.rows))
        palette = b"".join(bytes((shade, shade, shade, 0)) for shade in range(256))
        info = struct.pack("<IiiHHIIiiII", 40, self.width, self.height, 1, 8, 0, len(padded), 11811, 11811, 256, 0)
        start = 14 + len(info) + len(palette)
        return b"BM" + struct.pack("<IHHI", start + len(padded), 0, 0, start) + info + palette + padded

    def pdf_image(self) -> bytes:
        """As an object of a PDF."""
        packed = zlib.compress(b"".join(self.rows))
        head = b"<< /Type /XObject /Subtype /Image /ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /FlateDecode"
        size = b" /Width %d /Height %d /Length %d >>" % (self.width, self.height, len(packed))
        return head + size + b"\nstream\n" + packed + b"\nendstream"


@cache
def picture(text: str) -> Picture:
    """A page of text as a scanner at 150 dpi sees it, cut below the text to save time."""
    document = pypdfium2.PdfDocument(make_pdf(pages=[text]))
    bitmap = document[0].render(scale=150 / 72, grayscale=True)
    used = 320 + 30 * len(text.splitlines())
    pixels = bytes(bitmap.buffer)
    rows = [pixels[y * bitmap.stride : y * bitmap.stride + bitmap.width] for y in range(bitmap.height)][250:used]
    width = bitmap.width
    bitmap.close()
    document.close()
    return Picture(width, len(rows), tuple(rows))


def tiff(pictures: Sequence[Picture]) -> bytes:
    """One page after the other, not packed."""
    body = b"II*\0" + struct.pack("<I", 8)
    for number, each in enumerate(pictures):
        data = b"".join(each.rows)
        fields = [(256, each.width), (257, each.height), (258, 8), (259, 1), (262, 1), (273, 0), (277, 1)]
        fields += [(278, each.height), (279, len(data))]
        directory_bytes = 2 + 12 * len(fields) + 4
        start = len(body) + directory_bytes
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in fields)
        following = start + len(data) if number + 1 < len(pictures) else 0
        body += struct.pack("<H", len(fields)) + entries + struct.pack("<I", following) + data
    return body


def scanned_pdf(pages: Sequence[Picture | str]) -> bytes:
    """A PDF whose pages are pictures, or text."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for page in pages:
        if isinstance(page, str):
            content = f"BT /F 12 Tf 50 700 Td ({page}) Tj ET".encode("latin-1")
            resources = b"/Font << /F 3 0 R >>"
        else:
            objects.append(page.pdf_image())
            height = 595 * page.height // page.width
            content = b"q 595 0 0 %d 0 %d cm /I Do Q" % (height, 842 - height)
            resources = b"/XObject << /I %d 0 R >>" % len(objects)
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R /Resources << %s >> >>"
            % (len(objects), resources)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % each for each in enumerate(objects, start=1))
    return b"%PDF-1.7\n" + body + b"trailer\n<< /Root 1 0 R /Size %d >>\nstartxref\n0\n%%%%EOF\n" % (len(objects) + 1)
