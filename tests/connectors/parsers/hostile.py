"""Hostile and odd files, made on the spot, with how each may end.

`text`: it is parsed. `poison`: it is refused. `slow`: its time runs out, or its worker does. Most have one way to end;
where the outcome is the library's own affair (a flipped bit in a PDF), several.
"""

import io
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.connectors.parsers.building import (
    File,
    R,
    S,
    W,
    docx,
    mail,
    multipart,
    paragraph,
    png,
    pptx,
    rels,
    sheet,
    text_part,
    xlsx,
    zipped,
)
from tests.connectors.parsers.conftest import make_pdf

End = Literal["text", "poison", "slow"]

_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(10))
_CENTRAL = b"PK\x01\x02"
_DIRECTORY_END = b"PK\x05\x06"
_WORDS = "the river rose by a hand in an hour. "


@dataclass(frozen=True)
class Hostile:
    """One file of the corpus."""

    name: str
    build: Callable[[], bytes]
    ends: tuple[End, ...]


_CORPUS: list[Hostile] = []


def corpus() -> tuple[Hostile, ...]:
    """All files, in the order in which they are defined."""
    return tuple(_CORPUS)


def _ends(*ends: End) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Put a file into the corpus under the name of the function that makes it."""

    def register(build: Callable[[], bytes]) -> Callable[[], bytes]:
        _CORPUS.append(Hostile(build.__name__, build, ends))
        return build

    return register


def _flipped(data: bytes, seed: int, times: int = 8) -> bytes:
    damaged = bytearray(data)
    chance = random.Random(seed)  # noqa: S311 - reproducible damage, no secret
    for _ in range(times):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def _patched(data: bytes, signature: bytes, offset: int, value: int, width: int) -> bytes:
    """Other bytes in the last header with a signature."""
    place = data.rindex(signature) + offset
    return data[:place] + value.to_bytes(width, "little") + data[place + width :]


def _manual() -> bytes:
    return docx([_WORDS * 5] * 50)


def _prices() -> bytes:
    return xlsx({"Prices": [[_WORDS, number] for number in range(200)]})


# Nothing, and next to nothing.


@_ends("poison")
def zero_bytes() -> bytes:
    return b""


@_ends("poison")
def a_megabyte_of_nul() -> bytes:
    return bytes(1 << 20)


@_ends("poison")
def random_bytes() -> bytes:
    return random.Random(0).randbytes(1 << 20)  # noqa: S311 - reproducible junk, no secret


@_ends("poison")
def control_characters_alone() -> bytes:
    return b"\x1b\x0c\x08\x7f"


# Text.


@_ends("text")
def text_utf16_without_mark() -> bytes:
    return (_WORDS * 100).encode("utf-16-le")


@_ends("text")
def text_lone_surrogates() -> bytes:
    return b"\xff\xfe" + "words \ud800 more \udfff".encode("utf-16-le", "surrogatepass") * 100


@_ends("text")
def text_one_line_of_five_megabytes() -> bytes:
    return b"x" * 5_000_000


@_ends("poison")
def text_of_too_many_characters() -> bytes:
    return b"word " * 2_500_000


@_ends("text")
def markdown_of_brackets() -> bytes:
    return b"# " + b"[" * 200_000 + b"\n\n" + b"*" * 200_000 + b"\n```" * 50_000


@_ends("poison")
def rtf_document() -> bytes:
    return b"{\\rtf1\\ansi " + b"{" * 100_000


@_ends("poison")
def legacy_office_document() -> bytes:
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4096)


# HTML and SVG.


@_ends("poison")
def html_ten_thousand_deep() -> bytes:
    return b"<html><body>" + b"<div>" * 10_000 + b"words"


@_ends("poison")
def html_300_000_attributes() -> bytes:
    attributes = " ".join(f"a{number}=1" for number in range(300_000))
    return f"<!doctype html><p {attributes}>words</p>".encode()


@_ends("poison")
def html_300_000_attributes_after_an_end_of_tag_in_quotes() -> bytes:
    attributes = " ".join(f'a{number}="1"' for number in range(300_000))
    return f'<!doctype html><p z=">" {attributes}>words</p>'.encode()


@_ends("poison")
def html_300_000_attributes_without_blanks() -> bytes:
    attributes = "".join(f'a{number}="1"' for number in range(300_000))
    return f"<!doctype html><!-- <p z=\" --><script>'</script><p {attributes}>words</p>".encode()


@_ends("text", "poison")
def html_unclosed_tags() -> bytes:
    return b"<!doctype html>" + b"<p><b><i>words " * 2_000


@_ends("text")
def html_billion_laughs() -> bytes:
    return f"<!DOCTYPE html [{_LAUGHS}]><html><body><p>words &l9;</p></body></html>".encode()


@_ends("text")
def svg_billion_laughs() -> bytes:
    return f'<?xml version="1.0"?><!DOCTYPE svg [{_LAUGHS}]><svg><text>words &l9;</text></svg>'.encode()


@_ends("text")
def html_external_entity() -> bytes:
    return b'<!DOCTYPE html [<!ENTITY x SYSTEM "file:///proc/self/environ">]><html><p>words &x;</p></html>'


@_ends("poison")
def html_one_value_over_ten_megabytes() -> bytes:
    return b"<!doctype html><p title='" + b"x" * 11_000_000 + b"'>words"


@_ends("text")
def html_lone_surrogates() -> bytes:
    return b"<!doctype html><p>words &#xD800; &#xDFFF; &#0; &#x110000;</p>"


# PDF.


@_ends("poison")
def pdf_encrypted() -> bytes:
    return make_pdf(pages=["secret"], encrypted=True)


@_ends("poison")
def pdf_truncated() -> bytes:
    whole = make_pdf(pages=[_WORDS] * 20)
    return whole[: len(whole) // 2]


@_ends("text", "poison")
def pdf_bits_flipped() -> bytes:
    return _flipped(make_pdf(pages=[_WORDS] * 20), seed=1)


@_ends("text", "poison")
def pdf_streams_flipped() -> bytes:
    return _flipped(make_pdf(pages=[_WORDS] * 20), seed=2, times=100)


def _pdf(*objects: bytes) -> bytes:
    """Objects numbered from 1, the first is the catalogue; no cross-reference table: PDFium finds them."""
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % each for each in enumerate(objects, start=1))
    return b"%PDF-1.7\n" + body + b"trailer\n<< /Root 1 0 R /Size %d >>\nstartxref\n0\n%%%%EOF\n" % (len(objects) + 1)


_CATALOGUE = b"<< /Type /Catalog /Pages 2 0 R >>"
_ONE_PAGE = b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"


@_ends("text", "poison", "slow")
def pdf_flate_bomb() -> bytes:
    """Half a gigabyte of white space, packed twice."""
    packer = zlib.compressobj(9)
    once = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(512)) + packer.flush()
    twice = zlib.compress(once, 9)
    stream = b"<< /Filter [/FlateDecode /FlateDecode] /Length %d >>\nstream\n%s\nendstream" % (len(twice), twice)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R >>"
    return _pdf(_CATALOGUE, _ONE_PAGE, page, stream)


@_ends("poison")
def pdf_of_100_000_pages() -> bytes:
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 100_003))
    pages = b"<< /Type /Pages /Count 100000 /Kids [%s] >>" % kids
    return _pdf(_CATALOGUE, pages, *[b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"] * 100_000)


@_ends("text", "poison", "slow")
def pdf_page_tree_loop() -> bytes:
    return _pdf(_CATALOGUE, b"<< /Type /Pages /Count 3 /Kids [2 0 R 3 0 R] /Parent 2 0 R >>", _ONE_PAGE)


@_ends("text", "poison")
def pdf_that_claims_two_billion_pages() -> bytes:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"
    return _pdf(_CATALOGUE, b"<< /Type /Pages /Count 2147483647 /Kids [3 0 R] >>", page)


@_ends("text", "poison", "slow")
def pdf_form_that_draws_itself() -> bytes:
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /XObject << /F 5 0 R >> >> >>"
    )
    content = b"<< /Length 5 >>\nstream\n/F Do\nendstream"
    form = (
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F 5 0 R >> >> /Length 11 >>"
        b"\nstream\n/F Do /F Do\nendstream"
    )
    return _pdf(_CATALOGUE, _ONE_PAGE, page, content, form)


@_ends("poison")
def pdf_of_nested_arrays() -> bytes:
    return _pdf(b"[" * 200_000, _ONE_PAGE)


# Zip containers.


@_ends("poison")
def zip_of_text_files() -> bytes:
    return zipped({"notes.txt": _WORDS})


@_ends("poison")
def zip_bomb() -> bytes:
    return docx(more={"word/document.xml": b"<!--" + b" " * 60_000_000})


@_ends("poison")
def zip_nested_fifty_times() -> bytes:
    data = docx(["words"])
    for _ in range(50):
        data = zipped({"inner.zip": data})
    return data


@_ends("poison")
def zip_of_fifty_thousand_members() -> bytes:
    entry = _CENTRAL + bytes(42)
    end = _DIRECTORY_END + bytes(4) + b"\xff\xff\xff\xff" + (46 * 50_000).to_bytes(4, "little") + bytes(6)
    return b"PK\x03\x04" + bytes(60) + entry * 50_000 + end


@_ends("poison")
def zip_truncated() -> bytes:
    whole = _manual()
    return whole[: len(whole) // 2]


@_ends("text", "poison")
def zip_bits_flipped() -> bytes:
    return _flipped(_manual(), seed=3)


@_ends("poison")
def zip_wrong_checksum() -> bytes:
    return _patched(_manual(), _CENTRAL, 16, 0, 4)


@_ends("poison")
def zip_member_larger_than_it_says() -> bytes:
    return _patched(_manual(), _CENTRAL, 24, 10, 4)


@_ends("text", "poison")
def zip_member_smaller_than_it_says() -> bytes:
    return _patched(_manual(), _CENTRAL, 24, 0xFFFFFFF0, 4)


@_ends("poison")
def zip_member_packed_larger_than_the_file() -> bytes:
    return _patched(_manual(), _CENTRAL, 20, 0x7FFFFFF0, 4)


@_ends("text", "poison")
def zip_wrong_member_count() -> bytes:
    return _patched(_manual(), _DIRECTORY_END, 8, 0xFFFEFFFE, 4)


@_ends("poison")
def zip_directory_outside_of_the_file() -> bytes:
    return _patched(_manual(), _DIRECTORY_END, 16, 0xFFFFFF0, 4)


@_ends("poison")
def zip_two_members_of_one_name() -> bytes:
    target = io.BytesIO(docx(["first"]))
    with warnings.catch_warnings(), zipfile.ZipFile(target, "a") as container:
        warnings.simplefilter("ignore")
        container.writestr("word/document.xml", f"<w:document {W}><w:body>{paragraph('second')}</w:body></w:document>")
    return target.getvalue()


@_ends("poison")
def zip_members_overlap() -> bytes:
    return _patched(_manual(), _CENTRAL, 42, 1, 4)


@_ends("poison")
def zip_encrypted_member() -> bytes:
    return _patched(_manual(), _CENTRAL, 8, 1, 2)


@_ends("poison")
def epub_book() -> bytes:
    return zipped({"mimetype": "application/epub+zip"}, method=zipfile.ZIP_STORED)


# Word.


def _document(xml: str) -> bytes:
    return docx(more={"word/document.xml": xml})


@_ends("poison")
def docx_without_its_document() -> bytes:
    return zipped({"_rels/.rels": rels({"rId1": ("officeDocument", "word/document.xml")})})


@_ends("poison")
def docx_billion_laughs() -> bytes:
    return _document(
        f"<!DOCTYPE w [{_LAUGHS}]><w:document {W}><w:body><w:p><w:t>&l9;</w:t></w:p></w:body></w:document>"
    )


@_ends("poison")
def docx_external_entity() -> bytes:
    entity = '<!DOCTYPE w [<!ENTITY x SYSTEM "file:///proc/self/environ">]>'
    return _document(f"{entity}<w:document {W}><w:body><w:p><w:t>words &x;</w:t></w:p></w:body></w:document>")


@_ends("poison")
def docx_external_dtd() -> bytes:
    return _document(f'<!DOCTYPE w SYSTEM "http://127.0.0.1:9/x.dtd"><w:document {W}>{paragraph("words")}</w:document>')


@_ends("poison")
def docx_hundred_thousand_deep() -> bytes:
    return _document(f"<w:document {W}>" + "<w:p>" * 100_000)


@_ends("text", "poison", "slow")
def docx_300_000_attributes() -> bytes:
    attributes = " ".join(f'a{number}="1"' for number in range(300_000))
    return _document(f"<w:document {W} {attributes}><w:body>{paragraph('words')}</w:body></w:document>")


@_ends("poison")
def docx_malformed_xml() -> bytes:
    return _document(f"<w:document {W}><w:body>{paragraph('words')}")


@_ends("poison")
def docx_endless_paragraph() -> bytes:
    return _document(f"<w:document {W}><w:body><w:p><w:t>{_WORDS * 300_000}</w:t></w:p></w:body></w:document>")


@_ends("poison")
def docx_that_relates_to_a_path_outside() -> bytes:
    return docx(more={"_rels/.rels": rels({"rId1": ("officeDocument", "word/../../../etc/passwd")})})


# Excel.


@_ends("text")
def xlsx_cell_in_the_far_corner() -> bytes:
    cells = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>'
    return xlsx({"S": f'<worksheet {S}><dimension ref="A1:XFD1048576"/><sheetData>{cells}</sheetData></worksheet>'})


@_ends("poison", "slow")
def xlsx_a_million_empty_rows() -> bytes:
    rows = "".join(f'<row r="{number}"/>' for number in range(1, 1_000_001))
    return xlsx({"S": f"<worksheet {S}><sheetData>{rows}</sheetData></worksheet>"})


@_ends("poison")
def xlsx_one_huge_string_a_thousand_times() -> bytes:
    strings = f"<sst {S}><si><t>{_WORDS * 3_000}</t></si></sst>"
    rows = '<row><c t="s"><v>0</v></c></row>' * 1_000
    return xlsx(
        {"S": f"<worksheet {S}><sheetData>{rows}</sheetData></worksheet>"}, more={"xl/sharedStrings.xml": strings}
    )


@_ends("poison")
def xlsx_string_that_is_not_there() -> bytes:
    return xlsx({"S": f'<worksheet {S}><sheetData><row><c t="s"><v>7</v></c></row></sheetData></worksheet>'})


@_ends("text", "poison")
def xlsx_bits_flipped() -> bytes:
    return _flipped(_prices(), seed=4)


@_ends("poison")
def xlsx_sheet_refers_to_itself_ten_thousand_times() -> bytes:
    sheets = '<sheet name="S" r:id="rId1"/>' * 10_000
    return xlsx({"S": [["x"]]}, more={"xl/workbook.xml": f"<workbook {S} {R}><sheets>{sheets}</sheets></workbook>"})


@_ends("text")
def xlsx_number_of_a_million_digits() -> bytes:
    return xlsx({"S": f"<worksheet {S}><sheetData><row><c><v>{'9' * 1_000_000}</v></c></row></sheetData></worksheet>"})


@_ends("text")
def xlsx_blank_parts_of_a_hundred_megabytes_that_nobody_reads() -> bytes:
    return xlsx({"S": [["x"]]}, more={"xl/media/image1.emf": bytes(100_000_000)})


# PowerPoint.


@_ends("poison")
def pptx_without_slides() -> bytes:
    return pptx([])


@_ends("poison")
def pptx_missing_slide() -> bytes:
    return pptx([["x"]], more={"ppt/_rels/presentation.xml.rels": rels({"rId1": ("slide", "slides/slide9.xml")})})


@_ends("text")
def pptx_slide_that_is_its_own_notes() -> bytes:
    return pptx([["x"]], more={"ppt/slides/_rels/slide1.xml.rels": rels({"rId1": ("notesSlide", "slide1.xml")})})


@_ends("poison")
def pptx_whose_slide_is_a_sheet_of_blanks() -> bytes:
    return pptx([["x"]], more={"ppt/slides/slide1.xml": sheet([[""]])})


# Mail.


@_ends("text")
def mail_nested_1_500_deep() -> bytes:
    head = b"Subject: level\nFrom: a\nTo: b\nMIME-Version: 1.0\nContent-Type: message/rfc822\n\n"
    return head * 1_500 + text_part("words")


@_ends("poison")
def mail_of_parts_nested_1_500_deep() -> bytes:
    levels = range(1_500)
    opened = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level) for level in levels)
    return mail(subject="x", body=opened + text_part("words"))


@_ends("poison")
def mail_with_10_000_attachments() -> bytes:
    return mail(subject="x", body=multipart([File("a.txt", "text/plain", b"words").part()] * 10_000))


@_ends("poison")
def mail_of_100_000_parts() -> bytes:
    return mail(subject="x", body=multipart([b"\nx"] * 100_000))


@_ends("text")
def mail_broken_base64() -> bytes:
    return mail(subject="x", body=b"Content-Transfer-Encoding: base64\nContent-Type: text/plain\n\n!!!d29y$$ZHM===A=B")


@_ends("text")
def mail_broken_charset() -> bytes:
    return mail(subject="=?x-none?b?/////w==?=", body=b"Content-Type: text/plain; charset=\xff\xfe\x00\n\nGr\xfc\xdfe")


@_ends("text")
def mail_broken_headers() -> bytes:
    broken = b"Content-Type: multipart/mixed; boundary*0*=a'b'%ZZ; boundary*1=\"\\\"; name==?utf-8?q?; ;;;\n\n--\nwords"
    return mail(subject="=?utf-8?q?" * 1_000, body=broken)


@_ends("text")
def mail_header_of_half_a_megabyte() -> bytes:
    return mail(subject="=?a?q?x" * 70_000, body=b'Content-Type: a/b; x="' + b";" * 400_000 + b"\n\nwords")


@_ends("poison")
def mail_headers_without_end() -> bytes:
    return mail(subject="x", body=b"X-More: and more\n" * 200_000)


# Images.


@_ends("poison")
def png_that_claims_60_000_by_60_000_pixels() -> bytes:
    return png(60_000, 60_000, bytes(60_001) * 1_000)


@_ends("poison")
def png_truncated() -> bytes:
    return png(400, 400, bytes(401) * 400)[:60]


@_ends("poison")
def png_of_white() -> bytes:
    return png(200, 200, (b"\0" + b"\xff" * 200) * 200)


@_ends("poison")
def tiff_whose_pages_are_a_loop() -> bytes:
    return b"II*\0\x08\0\0\0" + b"\0\0\x08\0\0\0"


@_ends("poison")
def pdf_whose_page_is_as_large_as_a_field() -> bytes:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 1e9 1e9] /Contents 4 0 R >>"
    return _pdf(_CATALOGUE, _ONE_PAGE, page, b"<< /Length 14 >>\nstream\n0 0 1e9 1e9 re f\nendstream")


@_ends("poison")
def jpeg_of_nothing_but_its_mark() -> bytes:
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100)
