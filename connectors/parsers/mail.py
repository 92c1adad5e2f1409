"""Mail (RFC 5322 with MIME) to text: From, To, Date, Subject and the body; what is sent along becomes attachments.

Only the outermost message is taken apart, by offsets and without recursion: a message inside of it is one attachment,
however deep it goes on. The body is every plain text and HTML part that is no file; of alternatives, the plain one.
Headers, encodings and charsets that are broken are read as far as they go. Signatures are left out, and images that the
body shows, such as a logo.
"""

import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import compat32

from connectors.parsers import text
from connectors.parsers.bounded_text import BoundedText
from connectors.parsers.headings import shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import Attachment, ParsedDocument, Section
from schemas.errors import Poison

MEDIA_TYPE = "message/rfc822"

_SHOWN = ("From", "To", "Cc", "Date", "Subject")
_SIGNATURES = frozenset({"application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature"})
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_MAX_HEAD_BYTES = 1_000_000  # servers refuse mails long before
_MAX_VALUE_CHARS = 20_000  # of one header: some patterns of the standard library take quadratic time on hostile ones
_MAX_NAME_CHARS = 200
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True)
class _Part:
    """A part of the message: its headers, and where its content stands."""

    headers: Message
    start: int
    end: int
    depth: int = 0
    alternatives: int | None = None  # which multipart/alternative it belongs to, by where that begins
    related: bool = False  # it stands beside the page that shows it

    @property
    def media_type(self) -> str:
        return self.headers.get_content_type()

    @property
    def is_shown(self) -> bool:
        """Whether it is an image within the body."""
        disposition = self.headers.get_content_disposition()
        placed = disposition == "inline" or (self.related and disposition is None)
        return placed and self.media_type.startswith("image/") and "Content-ID" in self.headers


@dataclass(frozen=True)
class _Body:
    """A part of the body."""

    text: str
    is_html: bool
    alternatives: int | None
    sections: tuple[Section, ...] = ()


def parse(data: bytes, limits: Limits) -> ParsedDocument:
    """The headers that a reader sees, the body, and the attachments.

    Raises:
        Poison: beyond a limit: too many parts or attachments, nested too deep, endless headers.
    """
    message = _part(data, 0, len(data))
    bodies: list[_Body] = []
    attachments: list[Attachment] = []
    attachment_bytes = 0
    for number, part in enumerate(_leaves(data, message, limits), start=1):
        if _is_body(part):
            bodies.append(_body(data, part))
        elif part.media_type not in _SIGNATURES and not part.is_shown:
            content = _content(data, part)
            attachments.append(Attachment(_name(part, number), part.media_type, content))
            attachment_bytes += len(content)
        if len(attachments) > limits.max_attachments:
            raise Poison(f"a mail with more than {limits.max_attachments} attachments")
        if attachment_bytes > limits.max_attachment_bytes:
            raise Poison(f"a mail with more than {limits.max_attachment_bytes} bytes of attachments")
    written = BoundedText(limits)
    for header in _SHOWN:
        value = _header(message.headers, header)
        if value:
            written.add(f"{header}: {value}", apart="\n")
    sections: list[Section] = []
    for body in _chosen(bodies):
        start = written.add(body.text)
        sections += (replace(section, start=section.start + start) for section in body.sections)
    title = shorten(_header(message.headers, "Subject")) or None
    return ParsedDocument(str(written), MEDIA_TYPE, title, tuple(sections), tuple(attachments))


def _part(data: bytes, start: int, end: int) -> _Part:
    """Headers from `start` to the first blank line, content from there to `end`."""
    if data.startswith((b"\n", b"\r\n"), start):
        head_end, content = start, start + (1 if data.startswith(b"\n", start) else 2)
    else:
        blank = _HEAD_END.search(data, start, end)
        head_end, content = (blank.start(), blank.end()) if blank else (end, end)
    if head_end - start > _MAX_HEAD_BYTES:
        raise Poison(f"a mail with more than {_MAX_HEAD_BYTES} bytes of headers")
    headers = BytesHeaderParser(policy=compat32).parsebytes(data[start:head_end])
    _cut_long(headers)
    return _Part(headers, content, max(content, end))


def _inner_part(data: bytes, outer: _Part, start: int, end: int) -> _Part:
    alternatives = outer.start if outer.media_type == "multipart/alternative" else outer.alternatives
    related = outer.media_type == "multipart/related"
    return replace(_part(data, start, end), depth=outer.depth + 1, alternatives=alternatives, related=related)


def _cut_long(headers: Message) -> None:
    """Leave out, with a mark, what is beyond any sensible length of the headers that are read."""
    for name in (*_SHOWN, "Content-Type", "Content-Disposition", "Content-Transfer-Encoding"):
        raw = next((value for key, value in headers.raw_items() if key.lower() == name.lower()), None)
        if raw is not None and len(str(raw)) > _MAX_VALUE_CHARS:
            headers.replace_header(name, str(raw)[:_MAX_VALUE_CHARS] + "…")


def _leaves(data: bytes, message: _Part, limits: Limits) -> Iterator[_Part]:
    """The parts that have no parts, in order."""
    waiting = [message]
    seen = 0
    while waiting:
        part = waiting.pop()
        inner = _inner(data, part, limits)
        if inner is None:
            yield part
            continue
        seen += len(inner)
        if part.depth >= limits.max_nesting:
            raise Poison(f"a mail whose parts are nested more than {limits.max_nesting} deep")
        if seen > limits.max_members:
            raise Poison(f"a mail of more than {limits.max_members} parts")
        waiting += reversed(inner)


def _inner(data: bytes, part: _Part, limits: Limits) -> list[_Part] | None:
    """The parts of a multipart; None if it is none, or one without its boundary, which is read as text."""
    if not part.media_type.startswith("multipart/"):
        return None
    boundary = _boundary(part.headers)
    if not boundary:
        return None
    line = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    found: list[_Part] = []
    start: int | None = None
    # One line end more, which may belong to the header's blank line, begins the first delimiter.
    for delimiter in line.finditer(data, max(part.start - 1, 0), part.end):
        if start is not None:
            found.append(_inner_part(data, part, start, max(start, delimiter.start())))
        start = None
        if delimiter[1]:
            break
        start = data.find(b"\n", delimiter.end(), part.end) + 1 or part.end
        if len(found) > limits.max_members:
            raise Poison(f"a mail of more than {limits.max_members} parts")
    if start is not None:  # cut off: its last part goes to the end
        found.append(_inner_part(data, part, start, part.end))
    return found or None


def _boundary(headers: Message) -> bytes:
    try:
        return str(headers.get_boundary("")).encode("utf-8", errors="surrogateescape")
    except (ValueError, LookupError, TypeError, AttributeError):  # hostile parameters
        return b""


def _filename(headers: Message) -> str:
    try:
        return _decoded(headers.get_filename("") or "")
    except (ValueError, LookupError, TypeError, AttributeError):  # hostile parameters
        return ""


def _is_body(part: _Part) -> bool:
    is_text = part.media_type in {"text/plain", "text/html"} or part.media_type.startswith("multipart/")
    return is_text and not _filename(part.headers) and part.headers.get_content_disposition() != "attachment"


def _body(data: bytes, part: _Part) -> _Body:
    content = _content(data, part)
    label = part.headers.get_content_charset()
    encoding = text.encoding_by_label(label) if label else None
    decoded = content.decode(encoding, errors="replace") if encoding else _guessed(content)
    decoded = decoded.replace("\r\n", "\n").replace("\r", "\n").strip()
    if part.media_type != "text/html" or not decoded:
        return _Body(decoded, part.media_type == "text/html", part.alternatives)
    from connectors.parsers import html  # noqa: PLC0415 - libxml2 takes longer to load than most mails to parse

    # The mark outranks whatever the page declares of itself, which mail programs do not update.
    page = html.parse(decoded.encode("utf-8-sig", errors="replace"))
    return _Body(page.text, is_html=True, alternatives=part.alternatives, sections=page.sections)


def _guessed(content: bytes) -> str:
    try:
        guessed = text.decode(content)
    except Poison:
        guessed = None
    return content.decode("utf-8", errors="replace") if guessed is None else guessed


def _chosen(bodies: list[_Body]) -> Iterator[_Body]:
    """All that is said, once: of alternatives, the HTML only if nothing is said in plain text."""
    said_plainly = {body.alternatives for body in bodies if body.text.strip() and not body.is_html}
    for body in bodies:
        is_repeat = body.is_html and body.alternatives is not None and body.alternatives in said_plainly
        if body.text.strip() and not is_repeat:
            yield body


def _content(data: bytes, part: _Part) -> bytes:
    content = data[part.start : part.end]
    match str(part.headers.get("Content-Transfer-Encoding", "")).strip().lower():
        case "base64":
            packed = _NOT_BASE64.sub(b"", content)
            packed = packed[: len(packed) - (len(packed) % 4 == 1)]
            return binascii.a2b_base64(packed + b"=" * (-len(packed) % 4))
        case "quoted-printable":
            return quopri.decodestring(content)
    return content


def _name(part: _Part, number: int) -> str:
    """The last step of whatever path the sender names, or a name made up."""
    name = _UNPRINTABLE.sub(" ", _filename(part.headers)).replace("\\", "/").rpartition("/")[2].strip()
    if name.strip("."):
        return name[-_MAX_NAME_CHARS:]  # its end says what kind of file it is
    return f"part {number}.eml" if part.media_type == MEDIA_TYPE else f"part {number}"


def _header(headers: Message, name: str) -> str:
    raw = next((str(value) for key, value in headers.raw_items() if key.lower() == name.lower()), "")
    return " ".join(_UNPRINTABLE.sub(" ", _decoded(raw)).split())


def _decoded(raw: str) -> str:
    """A header as a person reads it: "=?utf-8?q?Gr=C3=BC=C3=9Fe?=" is "Grüße"."""
    value = _guessed(raw.encode("utf-8", errors="surrogateescape")) if not raw.isascii() else raw
    if "=?" not in value:
        return value
    try:
        words = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(_word(word, charset) for word, charset in words) or value


def _word(word: bytes | str, charset: str | None) -> str:
    if isinstance(word, str):
        return word
    encoding = text.encoding_by_label(charset) if charset else None
    # Words without a charset come as decode_header escapes them.
    return word.decode(encoding or "utf-8", errors="replace") if charset else word.decode("raw-unicode-escape")
