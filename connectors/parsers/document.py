"""One document of any supported type to text: detect, parse, check. Runs inside a worker process."""

import re
from dataclasses import replace

from connectors.parsers.detect import detect
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument
from schemas.errors import Poison

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def parse(data: bytes, *, name: str, limits: Limits) -> ParsedDocument:
    """Parse one document; its text is not blank, holds no control characters, and can be encoded as UTF-8.

    Raises:
        Poison: `name` and what is wrong with it.
    """
    try:
        document = _parse(data, name, limits)
        text = _printable(document.text)
        _check(text, limits)
    except Poison as error:
        raise Poison(f"{name}: {error}") from error
    return replace(
        document,
        text=text.rstrip(),
        title=_printable(document.title) if document.title else None,
        sections=tuple(replace(section, label=_printable(section.label)) for section in document.sections),
    )


def _printable(text: str) -> str:
    """One for one, so that the sections keep their places."""
    return _UNPRINTABLE.sub(" ", text)


def _parse(data: bytes, name: str, limits: Limits) -> ParsedDocument:  # noqa: PLR0911 - one for each type
    # Imported late: PDFium and libxml2 take longer to load than most documents take to parse.
    match detect(data, name=name, limits=limits):
        case "application/pdf":
            from connectors.parsers import pdf  # noqa: PLC0415 - see above

            return pdf.parse(data, limits)
        case "application/vnd.openxmlformats-officedocument.wordprocessingml.document":
            from connectors.parsers import docx  # noqa: PLC0415 - see above

            return docx.parse(data, limits)
        case "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet":
            from connectors.parsers import xlsx  # noqa: PLC0415 - see above

            return xlsx.parse(data, limits)
        case "application/vnd.openxmlformats-officedocument.presentationml.presentation":
            from connectors.parsers import pptx  # noqa: PLC0415 - see above

            return pptx.parse(data, limits)
        case "message/rfc822":
            from connectors.parsers import mail  # noqa: PLC0415 - see above

            return mail.parse(data, limits)
        case "image/png" | "image/jpeg" | "image/gif" | "image/tiff" | "image/webp" | "image/bmp" as image:
            from connectors.parsers import ocr  # noqa: PLC0415 - see above

            return ocr.parse(data, image, limits)
        case "text/html":
            from connectors.parsers import html  # noqa: PLC0415 - see above

            return html.parse(data)
        case "text/markdown":
            from connectors.parsers import text  # noqa: PLC0415 - see above

            return text.parse_markdown(data)
        case "text/plain":
            from connectors.parsers import text  # noqa: PLC0415 - see above

            return text.parse(data)


def _check(text: str, limits: Limits) -> None:
    if not text.strip():
        raise Poison("the document holds no text but white space")
    if len(text) > limits.max_characters:
        raise Poison(f"{len(text)} characters of text; the limit is {limits.max_characters}: split the document")
