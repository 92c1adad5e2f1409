import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers import image_size, ocr, pdf
from connectors.parsers.limits import Limits
from connectors.parsers.pool import ProcessParser
from connectors.parsers.port import ParsedDocument
from schemas.errors import Poison
from tests.connectors.parsers.building import png
from tests.connectors.parsers.pictures import picture, require_tesseract, scanned_pdf, tiff
from tests.connectors.parsers.test_pool import is_gone, until, worker_pids

LIMITS = Limits()
WORDS = "The river rose by a hand."
MORE = "Flood stage black at Stanner Bridge."


@pytest.fixture
def tesseract() -> None:
    require_tesseract()


@pytest.fixture
def no_tesseract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def hung_tesseract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tesseract that writes its pid into a file and never ends."""
    command = tmp_path / "tesseract"
    command.write_text(
        f"#!{sys.executable} -I\nimport os, pathlib, time\n"
        f"new = pathlib.Path({str(tmp_path / 'new')!r})\nnew.write_text(str(os.getpid()))\n"
        "new.rename(new.with_name('pid'))\ntime.sleep(600)\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "pid"


@pytest.fixture
def pdf_with_drawing() -> bytes:
    """A page of text, and one with a line across it."""
    data = scanned_pdf(["typed", "drawn"])
    return data.replace(b"BT /F 12 Tf 50 700 Td (drawn) Tj ET", b"0 0 m 595 842 l S                  ")


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize("kind", ["png", "bmp", "tiff"])
def test_text_in_an_image_is_read(kind: str) -> None:
    drawn = picture(WORDS)
    data = {"png": drawn.png(), "bmp": drawn.bmp(), "tiff": tiff([drawn])}[kind]
    assert ocr.parse(data, f"image/{kind}", LIMITS) == ParsedDocument(WORDS, f"image/{kind}", None)


@pytest.mark.usefixtures("tesseract")
def test_pages_of_an_image_are_sections() -> None:
    parsed = ocr.parse(tiff([picture(WORDS), picture(MORE)]), "image/tiff", LIMITS)
    assert parsed.text == f"{WORDS}\n\n{MORE}"
    assert [(section.start, section.label) for section in parsed.sections] == [
        (0, "page 1"),
        (len(WORDS) + 2, "page 2"),
    ]


@pytest.mark.usefixtures("tesseract")
def test_scanned_pages_are_read_between_those_with_text() -> None:
    parsed = pdf.parse(scanned_pdf([picture(WORDS).on_a_page(), "typed", "", picture(MORE).on_a_page()]))
    assert parsed.text == f"{WORDS}\n\ntyped\n\n{MORE}"
    assert [section.label for section in parsed.sections] == ["page 1", "page 2", "page 4"]


@pytest.mark.usefixtures("tesseract")
def test_worker_reads_scans_within_its_memory() -> None:
    async def scenario() -> ParsedDocument:
        async with ProcessParser(workers=1, memory_bytes=512 << 20) as parser:
            return await parser.parse(scanned_pdf([picture(WORDS)]), name="scan.pdf")

    assert asyncio.run(scenario()).text == WORDS


@pytest.mark.usefixtures("tesseract")
def test_image_without_text_is_poison_that_says_so() -> None:
    with pytest.raises(Poison, match="no text was found"):
        ocr.parse(png(100, 100, (b"\0" + b"\xff" * 100) * 100), "image/png", LIMITS)


@pytest.mark.usefixtures("tesseract")
def test_damaged_image_is_poison_that_asks() -> None:
    with pytest.raises(Poison, match="cannot read; is it damaged"):
        ocr.parse(picture(WORDS).png()[:2000], "image/png", LIMITS)


@pytest.mark.usefixtures("no_tesseract")
def test_without_tesseract_a_scan_is_poison_that_says_what_to_install() -> None:
    with pytest.raises(Poison, match=r"an image: it takes OCR.*install tesseract-ocr"):
        ocr.parse(picture(WORDS).png(), "image/png", LIMITS)
    with pytest.raises(Poison, match=r"scanned\?.*install tesseract-ocr"):
        pdf.parse(scanned_pdf([picture(WORDS)]))


@pytest.mark.usefixtures("no_tesseract")
def test_without_tesseract_the_pages_with_text_are_kept() -> None:
    parsed = pdf.parse(scanned_pdf([picture(WORDS), "typed"]))
    assert (parsed.text, [section.label for section in parsed.sections]) == ("typed", ["page 2"])


@pytest.mark.usefixtures("hung_tesseract")
def test_drawings_among_pages_with_text_are_not_worth_ocr(pdf_with_drawing: bytes) -> None:
    assert pdf.parse(pdf_with_drawing).text == "typed"


@pytest.mark.usefixtures("hung_tesseract")
def test_time_is_up_for_all_pages_together() -> None:
    with pytest.raises(Poison, match=r"takes longer than 0\.05 s"):
        pdf.parse(scanned_pdf([picture(WORDS)] * 3), Limits(ocr_timeout_s=0.05))


def test_tesseract_dies_with_its_worker(hung_tesseract: Path) -> None:
    async def scenario() -> None:
        async with ProcessParser(workers=1) as parser:
            reading = asyncio.create_task(parser.parse(picture(WORDS).png(), name="a.png"))
            await until(hung_tesseract.exists)
            pid = int(hung_tesseract.read_text())
            assert not is_gone(pid)
            (worker,) = worker_pids()
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(Poison, match="SIGKILL"):
                await reading
            await until(lambda: is_gone(pid))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (png(640, 480), "image/png"),
        (b"GIF89a\x80\x02\xe0\x01", "image/gif"),
        (b"BM" + bytes(12) + b"\x28\0\0\0\x80\x02\0\0\x20\xfe\xff\xff", "image/bmp"),
        (b"BM" + bytes(12) + b"\x0c\0\0\0\x80\x02\xe0\x01", "image/bmp"),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x7f\x02\0\xdf\x01\0", "image/webp"),
        (b"RIFF\0\0\0\0WEBPVP8L" + bytes(5) + (639 | 479 << 14).to_bytes(4, "little"), "image/webp"),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + b"\x80\x02\xe0\x01", "image/webp"),
        (b"\xff\xd8\xff\xe0\0\4ab\xff\xff\xc2\0\x0b\x08\x01\xe0\x02\x80", "image/jpeg"),
    ],
)
def test_size_is_read_from_the_header(data: bytes, media_type: str) -> None:
    assert image_size.largest(data, media_type) == (640, 480)


def test_size_of_a_tiff_is_that_of_its_largest_page() -> None:
    drawn = picture(WORDS)
    assert image_size.largest(tiff([drawn, drawn]), "image/tiff") == (drawn.width, drawn.height)


def test_tiff_whose_pages_are_a_loop_is_poison() -> None:
    with pytest.raises(Poison, match="damaged"):
        image_size.largest(b"II*\0\x08\0\0\0" + b"\0\0\x08\0\0\0", "image/tiff")


def test_too_many_pixels_are_poison_with_the_size() -> None:
    with pytest.raises(Poison, match="60000 x 60000 pixels; the limit is 50000000"):
        ocr.parse(png(60_000, 60_000), "image/png", LIMITS)


KINDS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF89a",
    "image/bmp": b"BM",
    "image/tiff": b"II*\0\x08\0\0\0",
    "image/webp": b"RIFF\0\0\0\0WEBPVP8",
}


@given(st.sampled_from(sorted(KINDS)), st.binary())
def test_header_of_any_kind_has_a_size_or_is_poison(media_type: str, rest: bytes) -> None:
    try:
        width, height = image_size.largest(KINDS[media_type] + rest, media_type)
    except Poison:
        return
    assert width * height >= 0
