"""What a document is, told from its bytes; its name only decides what bytes cannot: Markdown or plain text."""

import re
from pathlib import PurePosixPath
from typing import Literal

from connectors.parsers import text
from connectors.parsers.limits import Limits
from schemas.errors import Poison

MediaType = Literal[
    "application/pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "image/bmp",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/webp",
    "message/rfc822",
    "text/html",
    "text/markdown",
    "text/plain",
]
READABLE = (
    "PDF, Word (DOCX), Excel (XLSX), PowerPoint (PPTX), mail (EML), HTML, Markdown, plain text"
    " and, with tesseract, images (PNG, JPEG, TIFF, WebP, GIF, BMP)"
)
"""For messages: what can be read."""

_HEAD_BYTES = 16_384  # pages begin with licence comments of some kilobytes
_PDF_HEAD_BYTES = 1024  # readers accept a PDF header anywhere in here (PDF 1.7, implementation note 13)
_MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx"})

_ZIP = "ZIP archive"
_OLE = "legacy Microsoft Office document or Outlook message"
_READ_AS: dict[str, MediaType] = {
    "application/pdf": "application/pdf",
    "image/bmp": "image/bmp",
    "image/gif": "image/gif",
    "image/jpeg": "image/jpeg",
    "image/png": "image/png",
    "image/tiff": "image/tiff",
    "image/webp": "image/webp",
}
_SIGNATURES = (  # (offset, bytes, what to call it)
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (8, b"WEBPVP8", "image/webp"),
    (0, b"BM", "image/bmp"),
    (8, b"WAVEfmt ", "WAV recording"),
    (0, b"ID3", "MP3 recording"),
    (0, b"OggS\0", "Ogg recording"),
    (0, b"fLaC\0", "FLAC recording"),
    (4, b"ftyp", "MP4 or HEIF file"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OLE),
    (0, b"PK\x03\x04", _ZIP),
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
    (b"xl/workbook.bin", "binary Excel workbook (XLSB)"),
    (b"application/epub+zip", "EPUB book"),
    (b"application/vnd.oasis.opendocument", "OpenDocument file"),
)

_OFFICE: dict[str, MediaType] = {  # by the folder of its main part
    "word": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xl": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "ppt": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
}
_ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")  # a stream of the OLE container around it

_MAIL_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,60}):[ \t]?[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*(?:\r?\n|$)")
_MBOX_LINE = re.compile(r"From [^\r\n]*\r?\n")
_OF_MAIL = frozenset({"date", "message-id", "mime-version", "received", "return-path", "subject", "to"})
_MAIL_HEADERS = 3  # known ones, From among them: minutes and memos begin with one or two

# What may stand before the first tag: white space, an XML declaration, comments.
_PROLOG = r"(?:\s|<\?xml[^>]*>|<!--(?:(?!-->)[\s\S])*-->)*"
_HTML_DOCUMENT = re.compile(_PROLOG + r"<(?:!doctype\s+html|html|head|body)[\s/>]", re.IGNORECASE)
_HTML_FRAGMENT = re.compile(  # the tags that browsers sniff (WHATWG MIME Sniffing, 7.1)
    _PROLOG
    + r"<(?:title|meta|link|script|style|iframe|article|main|section|h[1-6]|div|font|table|a|b|br|p|ul|ol)[\s/>]",
    re.IGNORECASE,
)


def detect(data: bytes, *, name: str, limits: Limits | None = None) -> MediaType:
    """The type of a document that a parser here can read.

    Raises:
        Poison: empty, or of another type, which the message names ("RTF document", "ZIP archive").
    """
    if not data:
        raise Poison("the document is empty (0 bytes)")
    head = _head(data)
    if head.lstrip().startswith("%PDF-"):
        return "application/pdf"
    kind = _kind(data, printable=False)
    if kind is not None:
        return _binary(kind, data, limits or Limits())
    if _is_mail(head):
        return "message/rfc822"
    markdown = PurePosixPath(name).suffix.lower() in _MARKDOWN_SUFFIXES
    if _HTML_DOCUMENT.match(head) or (not markdown and _HTML_FRAGMENT.match(head)):
        return "text/html"
    if text.decode(data) is not None:
        return "text/markdown" if markdown else "text/plain"
    if b"%PDF-" in data[:_PDF_HEAD_BYTES]:
        kind = "application/pdf"
    return _binary(kind or _kind(data, printable=True) or "binary file of an unknown type", data, limits or Limits())


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
            if kind == _OLE and _ENCRYPTED_OFFICE in data:
                return "Microsoft Office document with a password"
            return kind
    if printable:
        return None
    return next((kind for signature, kind in _TEXT_SIGNATURES if data.startswith(signature)), None)


def _in_zip(data: bytes, limits: Limits) -> MediaType:
    """The type of an Office file; its main part tells it, since one may hold others."""
    from connectors.parsers import ooxml  # noqa: PLC0415 - zipfile and libxml2 take longer to load than most texts to read
    from connectors.parsers.archive import Archive  # noqa: PLC0415 - same

    found = ooxml.kind(Archive(data, limits))
    if found is None or found[1].endswith(".bin"):
        raise _unsupported(next((kind for member, kind in _IN_ZIP if member in data), _ZIP))
    return _OFFICE[found[0]]


def _is_mail(head: str) -> bool:
    """Headers from the first line on, and enough of them that mails have."""
    mbox_line = _MBOX_LINE.match(head)
    position = mbox_line.end() if mbox_line else 0
    names = set()
    while header := _MAIL_HEADER.match(head, position):
        names.add(header[1].lower())
        position = header.end()
    rest = head[position:]
    whole = rest.startswith(("\n", "\r\n")) or "\n" not in rest  # a blank line, or where the head was cut
    return whole and "from" in names and len(names & _OF_MAIL) >= _MAIL_HEADERS - 1


def _binary(kind: str, data: bytes, limits: Limits) -> MediaType:
    """What can be read of the kinds that a signature names."""
    if kind == _ZIP:
        return _in_zip(data, limits)
    if kind in _READ_AS:
        return _READ_AS[kind]
    raise _unsupported(kind)


def _unsupported(kind: str) -> Poison:
    return Poison(f"looks like a {kind}; only {READABLE} can be read")
