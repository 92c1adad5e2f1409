"""Documents by hand, as small as their standards allow."""

import io
import struct
import zlib
from base64 import encodebytes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr
from zipfile import ZIP_DEFLATED, ZipFile

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
P = (
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    ' xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
)
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
_TYPES = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/"

Parts = Mapping[str, str | bytes]


def zipped(parts: Parts, *, method: int = ZIP_DEFLATED) -> bytes:
    """A zip container with these members."""
    target = io.BytesIO()
    with ZipFile(target, "w", method) as container:
        for name, content in parts.items():
            container.writestr(name, content)
    return target.getvalue()


def rels(targets: Mapping[str, tuple[str, str]]) -> str:
    """Relationships: id to (type, target)."""
    each = (
        f'<Relationship Id="{name}" Type="{_TYPES}{kind}" Target={quoteattr(target)}/>'
        for name, (kind, target) in targets.items()
    )
    space = "http://schemas.openxmlformats.org/package/2006/relationships"
    return f'<Relationships xmlns="{space}">{"".join(each)}</Relationships>'


def core(title: str) -> str:
    """The properties of a document."""
    return (
        '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties"'
        f' xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{escape(title)}</dc:title></cp:coreProperties>'
    )


def paragraph(text: str, *, style: str = "") -> str:
    """A paragraph of a Word document."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of a Word document."""
    each = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in each)}</w:tbl>"


STYLES = "".join(
    f'<w:style w:type="paragraph" w:styleId="{style}"><w:name w:val="{name}"/></w:style>'
    for style, name in (("Titel", "Title"), ("berschrift1", "heading 1"), ("berschrift2", "heading 2"), ("V1", "toc 1"))
)


def docx(paragraphs: Sequence[str] = (), *, body: str = "", title: str = "", more: Parts | None = None) -> bytes:
    """A Word document whose styles have German ids."""
    words = "".join(map(paragraph, paragraphs)) + body
    parts: dict[str, str | bytes] = {
        "_rels/.rels": rels({"rId1": ("officeDocument", "word/document.xml")}),
        "word/_rels/document.xml.rels": rels(
            {"rId1": ("styles", "styles.xml"), "rId2": ("footnotes", "footnotes.xml")}
        ),
        "word/styles.xml": f"<w:styles {W}>{STYLES}</w:styles>",
        "word/document.xml": f"<w:document {W}><w:body>{words}</w:body></w:document>",
    }
    if title:
        parts["docProps/core.xml"] = core(title)
    return zipped(parts | dict(more or {}))


def column(number: int) -> str:
    """The name of a column, counted from 0: A, B, ... Z, AA."""
    name = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        name = chr(65 + rest) + name
    return name


def sheet(rows: Sequence[Sequence[str | float]]) -> str:
    """A sheet with its strings inline."""
    lines = []
    for y, row in enumerate(rows, start=1):
        cells = (
            f'<c r="{column(x)}{y}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
            if isinstance(value, str)
            else f'<c r="{column(x)}{y}"><v>{value}</v></c>'
            for x, value in enumerate(row)
        )
        lines.append(f'<row r="{y}">{"".join(cells)}</row>')
    return f"<worksheet {S}><sheetData>{''.join(lines)}</sheetData></worksheet>"


def xlsx(sheets: Mapping[str, Sequence[Sequence[str | float]] | str], *, more: Parts | None = None) -> bytes:
    """An Excel workbook; a sheet is given by its values, or as XML."""
    listed = "".join(
        f'<sheet name={quoteattr(name)} sheetId="{n}" r:id="rId{n}"/>' for n, name in enumerate(sheets, start=1)
    )
    targets = {f"rId{n}": ("worksheet", f"/xl/worksheets/sheet{n}.xml") for n in range(1, len(sheets) + 1)}
    parts: dict[str, str | bytes] = {
        "_rels/.rels": rels({"rId1": ("officeDocument", "xl/workbook.xml")}),
        "xl/workbook.xml": f"<workbook {S} {R}><sheets>{listed}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": rels(
            targets | {"rS": ("sharedStrings", "sharedStrings.xml"), "rT": ("styles", "styles.xml")}
        ),
    }
    for n, rows in enumerate(sheets.values(), start=1):
        parts[f"xl/worksheets/sheet{n}.xml"] = rows if isinstance(rows, str) else sheet(rows)
    return zipped(parts | dict(more or {}))


def shape(lines: Sequence[str], *, placeholder: str = "") -> str:
    """A shape of a slide, a paragraph per line."""
    kind = f'<p:nvSpPr><p:nvPr><p:ph type="{placeholder}"/></p:nvPr></p:nvSpPr>' if placeholder else ""
    words = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in lines)
    return f"<p:sp>{kind}<p:txBody>{words}</p:txBody></p:sp>"


def slide(shapes: str, root: str = "sld") -> str:
    """A slide, or with another root its notes."""
    return f"<p:{root} {P}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:{root}>"


def pptx(
    slides: Sequence[Sequence[str] | str],
    *,
    notes: Mapping[int, str] | None = None,
    more: Parts | None = None,
    method: int = ZIP_DEFLATED,
) -> bytes:
    """A presentation; a slide is given by the lines of its one shape, or by its shapes as XML. Notes count from 1."""
    ids = "".join(f'<p:sldId id="{255 + n}" r:id="rId{n}"/>' for n in range(1, len(slides) + 1))
    parts: dict[str, str | bytes] = {
        "_rels/.rels": rels({"rId1": ("officeDocument", "ppt/presentation.xml")}),
        "ppt/presentation.xml": f"<p:presentation {P} {R}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": rels(
            {f"rId{n}": ("slide", f"slides/slide{n}.xml") for n in range(1, len(slides) + 1)}
        ),
    }
    for n, lines in enumerate(slides, start=1):
        parts[f"ppt/slides/slide{n}.xml"] = slide(lines if isinstance(lines, str) else shape(lines))
    for n, said in (notes or {}).items():
        parts[f"ppt/slides/_rels/slide{n}.xml.rels"] = rels({"rId1": ("notesSlide", f"../notesSlides/notes{n}.xml")})
        shapes = shape([said], placeholder="body") + shape(["7"], placeholder="sldNum")
        parts[f"ppt/notesSlides/notes{n}.xml"] = slide(shapes, "notes")
    return zipped(parts | dict(more or {}), method=method)


@dataclass(frozen=True)
class File:
    """What a mail sends along."""

    name: str
    media_type: str
    data: bytes

    def part(self) -> bytes:
        """As a part of a multipart message."""
        head = f'Content-Type: {self.media_type}; name="{self.name}"\nContent-Transfer-Encoding: base64\n\n'
        return head.encode() + encodebytes(self.data)


def text_part(text: str, subtype: str = "plain") -> bytes:
    """Text as a part of a multipart message."""
    return f"Content-Type: text/{subtype}; charset=utf-8\n\n{text}".encode()


def multipart(parts: Sequence[bytes], *, subtype: str = "mixed", boundary: str = "=_b1") -> bytes:
    """The header and the content of a multipart."""
    line = f"--{boundary}".encode()
    content = b"".join(line + b"\n" + part + b"\n" for part in parts)
    return f'Content-Type: multipart/{subtype}; boundary="{boundary}"\n\n'.encode() + content + line + b"--\n"


def mail(*, subject: str, body: str | bytes, sender: str = "Ann <ann@example.org>") -> bytes:
    """A mail; a body of bytes begins with the rest of the headers."""
    rest = text_part(body) if isinstance(body, str) else body
    head = f"From: {sender}\nTo: bob@example.org\nDate: Fri, 21 Nov 2025 07:00:00 +0000\nSubject: {subject}\n"
    return head.encode() + b"MIME-Version: 1.0\n" + rest


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG image in shades of grey; `rows` are its pixels with a filter byte (0) before each row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
