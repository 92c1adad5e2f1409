"""Plain text and Markdown, in any encoding that can be told from the bytes.

Order of trust: a byte order mark, UTF-16 by the place of its NUL bytes, UTF-8 (a few broken characters are tolerated),
an encoding of a language that does not write in Latin letters, windows-1252. Those of languages that do (Polish,
Turkish) cannot be told from the last unless they use a byte that it leaves undefined. What no encoding fits is refused.

Markdown stays as it is written: links, tables and code are quoted verbatim, which keeps it readable and exact. Only
its headings are understood, for sections and the title.
"""

import codecs
import re
from contextlib import suppress

from connectors.parsers.headings import Heading, outline, shorten
from connectors.parsers.port import ParsedDocument
from schemas.errors import Poison

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WEB_ENCODINGS = re.compile(  # those of the WHATWG Encoding standard; Python knows others that are no text encodings
    r"utf-8|ascii|iso8859-\d+|cp125\d|cp866|cp874|koi8-[ru]|mac-(?:roman|cyrillic)|gb2312|gbk|gb18030|big5|big5hkscs"
    r"|euc_jp|shift_jis|cp932|iso2022_jp|euc_kr|cp949"
)
_CONTROLS = re.compile(r"[\x00-\x07\x0e-\x1a\x1c-\x1f]")  # not tab, line and page breaks, backspace, escape
_MAX_CONTROL_SHARE = 0.02  # random bytes have 0.1, text has none but for the odd stray
_MAX_BROKEN_SHARE = 0.1  # of the non-ASCII characters: more is not UTF-8 with a scratch but another encoding
_SAMPLE_BYTES = 1 << 16
_MIN_WIDE_SHARE = 0.1  # of the characters: a stray NUL in a log does not make it UTF-16, in which blanks have one
_REPEATED = re.compile(rb"([\x80-\xff])\1+")  # a rule of dashes or bullets is no word
_FOREIGN = re.compile(rb"[\x80-\xff]{3,}")  # Latin letters with accents hardly ever stand three in a row
_MIN_FOREIGN_SHARE = 0.4  # 0.6 and more in Japanese, whose second bytes may be ASCII; below 0.1 in Western languages
_MIN_CONFIDENCE = 0.05  # for a word or two it has 0.09, for what fits nothing 0.03
_MAX_HEADING_CHARS = 1_000

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_NO_PARAGRAPH = re.compile(r" {4}|\t| {0,3}(?:>|[-*+] |\d+[.)] |\|)")  # a line that "---" below does not make a heading
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_EMPHASIS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)")


def encoding_by_mark(data: bytes) -> tuple[str, int] | None:
    """The encoding that a byte order mark names, and the mark's length; None without a mark."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    return None


def encoding_by_label(label: str) -> str | None:
    """The encoding that a page or a mail declares, as browsers understand it; None if it is none of the web's."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    if name in {"ascii", "iso8859-1"}:
        return "cp1252"  # as in every browser
    return name if _WEB_ENCODINGS.fullmatch(name) else None


def utf16_without_mark(data: bytes) -> str | None:
    """`utf-16-le` or `utf-16-be` if NUL bytes enough say so, else None.

    Spaces, digits and line ends have a NUL for their high byte, in every language: all NULs stand at odd offsets in
    little-endian text, at even ones in big-endian.
    """
    sample = data[: _SAMPLE_BYTES & ~1]
    at_even, at_odd = sample[0::2].count(0), sample[1::2].count(0)
    if at_even + at_odd < max(1, _MIN_WIDE_SHARE * len(sample) / 2) or len(data) % 2:
        return None
    if at_even <= at_odd // 100:
        return "utf-16-le"
    if at_odd <= at_even // 100:
        return "utf-16-be"
    return None


def decode(data: bytes) -> str | None:
    """The text, every line end a line feed, a stray NUL left out, or None if these bytes are no text.

    Raises:
        Poison: text, but in an encoding that cannot be told.
    """
    text = _decoded(data)
    if text is None or _is_binary(text):
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _decoded(data: bytes) -> str | None:
    marked = encoding_by_mark(data)
    if marked is not None:
        encoding, length = marked
        return data[length:].decode(encoding, errors="replace")
    wide = utf16_without_mark(data)
    if wide is not None:
        try:
            return data.decode(wide)
        except UnicodeDecodeError:
            return None
    return _utf8_or_8_bit(data)


def _is_binary(text: str) -> bool:
    return len(_CONTROLS.findall(text)) > _MAX_CONTROL_SHARE * len(text)


def _utf8_or_8_bit(data: bytes) -> str | None:
    with suppress(UnicodeDecodeError):
        return data.decode("utf-8")
    text = data.decode("utf-8", errors="replace")
    beyond_ascii = len(text) - len(text.encode("ascii", errors="ignore"))
    if text.count("�") <= _MAX_BROKEN_SHARE * beyond_ascii:
        return text
    foreign = _foreign_encoding(data)
    if foreign is not None:
        return data.decode(foreign, errors="replace")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError as error:
        if _is_binary(text):
            return None
        raise Poison("text in an encoding that cannot be told from its bytes; convert it to UTF-8") from error


def _foreign_encoding(data: bytes) -> str | None:
    """That of a Cyrillic, Greek, Japanese ... text, told from its words; None for one in Latin letters."""
    lines = b"\n".join(line for line in data[:_SAMPLE_BYTES].splitlines() if not line.isascii())
    sample = _REPEATED.sub(rb"\1", lines)
    beyond_ascii = len(sample) - len(sample.translate(None, bytes(range(128, 256))))
    in_words = sum(map(len, _FOREIGN.findall(sample)))
    if in_words < _MIN_FOREIGN_SHARE * beyond_ascii or in_words == 0:
        return None
    import chardet  # noqa: PLC0415 - its models take 0.3 s to load, and few documents need them

    guess = chardet.detect(lines)
    if not guess["encoding"] or guess["confidence"] < _MIN_CONFIDENCE:
        return None
    return encoding_by_label(guess["encoding"])


def parse(data: bytes) -> ParsedDocument:
    """Plain text as it is: no title, no sections."""
    return ParsedDocument(_text(data), "text/plain", title=None)


def parse_markdown(data: bytes) -> ParsedDocument:
    """Markdown as it is written, with its headings as sections; the title is the first heading."""
    text = _text(data)
    headings = _headings(text)
    title = next((shorten(heading.text) for heading in headings if heading.text), None)
    return ParsedDocument(text, "text/markdown", title, outline(headings))


def _text(data: bytes) -> str:
    text = decode(data)
    if text is None:
        raise Poison("binary data of an unknown type")
    return text


def _headings(text: str) -> list[Heading]:
    """ATX ("## Linux") and setext (underlined) headings outside code fences and front matter."""
    headings: list[Heading] = []
    fence = ""
    previous = ""
    start = previous_start = 0
    in_front_matter = text.startswith("---\n")
    for number, line in enumerate(text.split("\n")):
        if in_front_matter:
            in_front_matter = number == 0 or line.rstrip() not in {"---", "..."}
            line_is_paragraph = False
        elif fence:
            closing = _FENCE.match(line)
            if closing and closing[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            line_is_paragraph = False
        elif opening := _FENCE.match(line):
            fence = opening[1]
            line_is_paragraph = False
        elif atx := _ATX.match(line):
            headings.append(Heading(start, len(atx[1]), _plain(_without_closing_hashes(line[atx.end() :]))))
            line_is_paragraph = False
        elif previous and (setext := _SETEXT.match(line)):
            headings.append(Heading(previous_start, 1 if setext[1][0] == "=" else 2, _plain(previous)))
            line_is_paragraph = False
        else:
            line_is_paragraph = bool(line.strip()) and not _NO_PARAGRAPH.match(line)
        previous, previous_start = (line, start) if line_is_paragraph else ("", start)
        start += len(line) + 1
    return headings


def _without_closing_hashes(heading: str) -> str:
    rest = heading.strip()
    opened = rest.rstrip("#")
    return opened if not opened or opened[-1].isspace() else rest


def _plain(heading: str) -> str:
    """A heading without its inline markup; cut first, since the patterns take quadratic time on hostile lines."""
    return " ".join(_EMPHASIS.sub("", _LINK.sub(r"\1", heading[:_MAX_HEADING_CHARS])).split())
