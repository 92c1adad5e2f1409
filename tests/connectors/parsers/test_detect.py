import random
from zipfile import ZIP_STORED

import pytest

from connectors.parsers.detect import detect
from schemas.errors import Poison
from tests.connectors.parsers.building import docx, mail, pptx, xlsx, zipped

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512)
SQLITE = b"SQLite format 3\x00\x10\x00\x01\x01\x00\x40\x20\x20"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (zipped({"notes.txt": "words"}), "ZIP archive"),
        (zipped({"mimetype": "application/epub+zip"}, method=ZIP_STORED), "EPUB book"),
        (zipped({"mimetype": "application/vnd.oasis.opendocument.text"}, method=ZIP_STORED), "OpenDocument file"),
        (zipped({"xl/workbook.bin": "..."}), "binary Excel workbook"),
        (OLE, "legacy Microsoft Office document"),
        (OLE + "EncryptedPackage".encode("utf-16-le"), "Microsoft Office document with a password"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip archive"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00", "Linux program"),
        (SQLITE, "SQLite database"),
        (b"{\\rtf1\\ansi Hello}", "RTF document"),
        (b"%!PS-Adobe-3.0\n/Helvetica findfont", "PostScript document"),
        (bytes(1000), "binary file of an unknown type"),
    ],
)
def test_unsupported_type_is_poison_that_names_it(data: bytes, kind: str) -> None:
    with pytest.raises(Poison, match=f"looks like a {kind}"):
        detect(data, name="document.txt")


@pytest.mark.parametrize("seed", range(20))
def test_binary_junk_is_never_taken_for_text(seed: int) -> None:
    junk = random.Random(seed).randbytes(4096)  # noqa: S311 - reproducible junk, no secret
    with pytest.raises(Poison, match="looks like"):
        detect(junk, name="notes.txt")


def test_zero_bytes_are_poison_that_says_so() -> None:
    with pytest.raises(Poison, match="empty"):
        detect(b"", name="notes.txt")


@pytest.mark.parametrize("text", ["BM is a river", "MZ", "PAR1 values", "ID3 tags", "BZh", "GIF89a is a format"])
def test_text_that_begins_like_a_binary_file_is_text(text: str) -> None:
    assert detect(text.encode(), name="notes.txt") == "text/plain"


def test_refusal_says_what_can_be_read() -> None:
    with pytest.raises(Poison, match=r"Word \(DOCX\).*mail \(EML\).*plain text.* can be read$"):
        detect(b"{\\rtf1}", name="a.rtf")


@pytest.mark.parametrize(
    ("data", "subtype"),
    [
        (docx(["x"]), "wordprocessingml.document"),
        (xlsx({"S": [["x"]]}), "spreadsheetml.sheet"),
        (pptx([["x"]]), "presentationml.presentation"),
    ],
)
def test_office_file_is_known_by_its_main_part(data: bytes, subtype: str) -> None:
    assert detect(data, name="notes.txt") == f"application/vnd.openxmlformats-officedocument.{subtype}"


def test_presentation_that_holds_a_workbook_is_a_presentation() -> None:
    data = pptx([["x"]], more={"ppt/embeddings/prices.xlsx": xlsx({"S": [["x"]]})}, method=ZIP_STORED)
    assert detect(data, name="a").endswith("presentation")


def test_damaged_zip_container_is_poison_that_says_so() -> None:
    with pytest.raises(Poison, match="damaged zip container"):
        detect(docx(["x"])[:100], name="a.docx")


@pytest.mark.parametrize(
    "head",
    [
        mail(subject="x", body="y"),
        b"From ann@example.org Fri Nov 21 07:00:00 2025\n" + mail(subject="x", body="y"),
        b"Received: from a\r\n\tby b; Fri\r\nFROM: a@b\r\nDate: today\r\n\r\n\r\n",
        b"From: a\nTo: b\nDate: c\nX-Long: " + b"x" * 20_000 + b"\n\nbody",
    ],
)
def test_mail_is_known_by_its_headers(head: bytes) -> None:
    assert detect(head, name="notes.txt") == "message/rfc822"


@pytest.mark.parametrize(
    "text",
    [
        "Date: today\nSubject: minutes\n\nWords",
        "From: ann to bob\nwords",
        "From: a\nTo: b\nDate: c\nno header here\n\nx",
    ],
)
def test_text_that_begins_like_a_mail_is_text(text: str) -> None:
    assert detect(text.encode(), name="notes.txt") == "text/plain"


def test_content_outranks_the_name() -> None:
    assert detect(b"%PDF-1.4\n...", name="notes.txt") == "application/pdf"
    assert detect(b"<!DOCTYPE html><p>hello", name="notes.txt") == "text/html"
    assert detect(b"just words", name="report.pdf") == "text/plain"
    assert detect(PNG, name="report.pdf") == "image/png"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", "image/jpeg"),
        (b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00", "image/gif"),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 \x18\x00\x00\x00", "image/webp"),
        (b"II*\x00\x08\x00\x00\x00", "image/tiff"),
        (b"BM\x46\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00", "image/bmp"),
    ],
)
def test_image_is_known_by_its_signature(data: bytes, media_type: str) -> None:
    assert detect(data, name="notes.txt") == media_type


def test_pdf_after_leading_junk_is_a_pdf() -> None:
    assert detect(b"\x00\x01\x02 mail header \x00 %PDF-1.7\n\x00\x03", name="a") == "application/pdf"
    assert detect(b"\xef\xbb\xbf%PDF-1.7", name="a") == "application/pdf"


def test_text_about_pdf_is_text() -> None:
    assert detect(b"A PDF begins with %PDF-1.7.", name="notes.txt") == "text/plain"


@pytest.mark.parametrize(
    "page",
    [
        "<!doctype html><title>x</title>",
        "\n\n  <HTML lang='en'>",
        "<!-- licence --><html>",
        "<!-- " + "licence " * 1000 + "--><html>",
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
        "<p>a fragment</p>",
        "<div class='x'>a fragment</div>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_html_is_found_in_every_encoding(page: str, encoding: str) -> None:
    assert detect(page.encode(encoding), name="page") == "text/html"


@pytest.mark.parametrize("text", ["a < b and <p>", "<pre-release> notes", "<<<<<<< HEAD", "<abbr"])
def test_text_with_angle_brackets_is_text(text: str) -> None:
    assert detect(text.encode(), name="notes.txt") == "text/plain"


@pytest.mark.parametrize("name", ["README.md", "file:///a/b%20c/Notes.MD", "s3://bucket/notes.markdown"])
def test_markdown_is_known_by_its_name_alone(name: str) -> None:
    assert detect(b"# Title", name=name) == "text/markdown"
    assert detect(b"# Title", name="README") == "text/plain"


def test_markdown_that_begins_with_a_tag_is_markdown() -> None:
    assert detect(b'<p align="center"><img src="logo.svg"></p>\n\n# Title', name="README.md") == "text/markdown"
    assert detect(b"<!doctype html><html>", name="saved.md") == "text/html"
