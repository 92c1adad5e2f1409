"""What a document is, told from its bytes; its name only decides what bytes cannot: Markdown or plain text."""

import re
from pathlib import PurePosixPath
from typing import Literal

from connectors.parsers import text
from schemas.errors import Poison

MediaType = Literal["application/pdf", "text/html", "text/markdown", "text/plain"]

_HEAD_BYTES = 16_384  # pages begin with licence comments of some kilobytes
_PDF_HEAD_BYTES = 1024  # readers accept a PDF header anywhere in here (PDF 1.7, implementation note 13)
_MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx"})

_SIGNATURES = (  # (offset, bytes, what to call it)
    (0, b"\x89PNG\r\n\x1a\n", "PNG image"),
    (0, b"\xff\xd8\xff", "JPEG image"),
    (0, b"GIF87a", "GIF image"),
    (0, b"GIF89a", "GIF image"),
    (0, b"II*\0", "TIFF image"),
    (0, b"MM\0*", "TIFF image"),
    (8, b"WEBPVP8", "WebP image"),
    (8, b"WAVEfmt ", "WAV recording"),
    (0, b"ID3", "MP3 recording"),
    (0, b"OggS\0", "Ogg recording"),
    (0, b"fLaC\0", "FLAC recording"),
    (4, b"ftyp", "MP4 or HEIF file"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "legacy Microsoft Office document or Outlook message"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"PK\x05\x06", "empty ZIP archive"),
    (0, b"\x1f\x8b\x08", "gzip archive"),
    (0, b"BZh", "bzip2 archive"),
    (0, b"\xfd7zXZ\0", "xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard archive"),
    (257, b"ustar", "tar archive"),
    (0, b"\x7fELF", "Linux program"),
    (0, b"MZ", "Windows program"),
    (0, b"\xcf\xfa\xed\xfe", "macOS program"),
    (0, b"SQLite format 3\0", "SQLite database"),
    (0, b"PAR1", "Parquet file"),
    (0, b"wOFF", "web font"),
    (0, b"wOF2", "web font"),
)
_TEXT_SIGNATURES = (  # readable as text, but the text is not what a reader of the document sees
    (b"{\\rtf", "RTF document"),
    (b"%!PS", "PostScript document"),
)
_IN_ZIP = (  # names of archive members are never compressed
    (b"word/document.xml", "Word document (DOCX)"),
    (b"xl/workbook.xml", "Excel workbook (XLSX)"),
    (b"ppt/presentation.xml", "PowerPoint presentation (PPTX)"),
    (b"application/epub+zip", "EPUB book"),
    (b"application/vnd.oasis.opendocument", "OpenDocument file"),
)

# What may stand before the first tag: white space, an XML declaration, comments.
_PROLOG = r"(?:\s|<\?xml[^>]*>|<!--(?:(?!-->)[\s\S])*-->)*"
_HTML_DOCUMENT = re.compile(_PROLOG + r"<(?:!doctype\s+html|html|head|body)[\s/>]", re.IGNORECASE)
_HTML_FRAGMENT = re.compile(  # the tags that browsers sniff (WHATWG MIME Sniffing, 7.1)
    _PROLOG
    + r"<(?:title|meta|link|script|style|iframe|article|main|section|h[1-6]|div|font|table|a|b|br|p|ul|ol)[\s/>]",
    re.IGNORECASE,
)


def detect(data: bytes, *, name: str) -> MediaType:
    """The type of a document that a parser here can read.

    Raises:
        Poison: empty, or of another type, which the message names ("PNG image", "ZIP archive").
    """
    if not data:
        raise Poison("the document is empty (0 bytes)")
    head = _head(data)
    if head.lstrip().startswith("%PDF-"):
        return "application/pdf"
    kind = _kind(data, printable=False)
    if kind is not None:
        raise _unsupported(kind)
    markdown = PurePosixPath(name).suffix.lower() in _MARKDOWN_SUFFIXES
    if _HTML_DOCUMENT.match(head) or (not markdown and _HTML_FRAGMENT.match(head)):
        return "text/html"
    if text.decode(data) is not None:
        return "text/markdown" if markdown else "text/plain"
    if b"%PDF-" in data[:_PDF_HEAD_BYTES]:
        return "application/pdf"
    raise _unsupported(_kind(data, printable=True) or "binary file of an unknown type")


def _head(data: bytes) -> str:
    marked = text.encoding_by_mark(data)
    if marked is not None:
        encoding, length = marked
        return data[length:_HEAD_BYTES].decode(encoding, errors="replace")
    return data[:_HEAD_BYTES].decode(text.utf16_without_mark(data) or "latin-1", errors="replace")


def _kind(data: bytes, *, printable: bool) -> str | None:
    """The name of a known signature; `printable` ones prove nothing unless the data is known to be no text."""
    for offset, signature, kind in _SIGNATURES:
        if (signature.isascii() and signature.decode().isprintable()) == printable and data.startswith(
            signature, offset
        ):
            if kind == "ZIP archive":
                return next((office for member, office in _IN_ZIP if member in data), kind)
            return kind
    if printable:
        return None
    return next((kind for signature, kind in _TEXT_SIGNATURES if data.startswith(signature)), None)


def _unsupported(kind: str) -> Poison:
    return Poison(f"looks like a {kind}; only PDF, HTML, Markdown and plain text can be read so far")
