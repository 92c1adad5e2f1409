import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from connectors.parsers.limits import Limits
from connectors.parsers.pdf import parse
from schemas.errors import Poison

MakePdf = Callable[..., bytes]


def test_pages_are_sections_named_as_a_viewer_counts_them(pdf: MakePdf) -> None:
    parsed = parse(pdf(pages=["first page", "second page", "third page"]))
    assert [(parsed.text[section.start :].split("\n")[0], section.label) for section in parsed.sections] == [
        ("first page", "page 1"),
        ("second page", "page 2"),
        ("third page", "page 3"),
    ]


def test_page_without_text_is_no_section_but_counts(pdf: MakePdf) -> None:
    parsed = parse(pdf(pages=["first", "", "third"]))
    assert [section.label for section in parsed.sections] == ["page 1", "page 3"]


def test_title_comes_from_the_document_information(pdf: MakePdf) -> None:
    assert parse(pdf(pages=["x"], title="Yearly  report")).title == "Yearly report"
    assert parse(pdf(pages=["x"])).title is None


def test_lines_of_a_paragraph_are_joined_and_headings_are_not(pdf: MakePdf) -> None:
    page = "Heading\nThis line fills the whole width and goes on\nin the next one, which ends here.\nNew paragraph"
    assert parse(pdf(pages=[page])).text == (
        "Heading\nThis line fills the whole width and goes on in the next one, which ends here.\nNew paragraph"
    )


def test_word_divided_at_a_line_end_is_put_together(pdf: MakePdf) -> None:
    assert parse(pdf(pages=["the trans-\nmission of power"])).text == "the transmission of power"


def test_encrypted_pdf_is_poison_that_says_so(pdf: MakePdf) -> None:
    with pytest.raises(Poison, match="encrypted"):
        parse(pdf(pages=["secret"], encrypted=True))


def test_pdf_of_blank_pages_is_poison_that_says_so(pdf: MakePdf) -> None:
    with pytest.raises(Poison, match="its pages show nothing"):
        parse(pdf(pages=["", ""]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_pdf_cut_off_anywhere_is_poison_rather_than_half_a_document(pdf: MakePdf, share: float) -> None:
    whole = pdf(pages=[f"page {number}" for number in range(20)])
    with pytest.raises(Poison, match="PDF"):
        parse(whole[: int(share * len(whole))])


def test_bytes_after_the_end_of_a_pdf_do_no_harm(pdf: MakePdf) -> None:
    assert parse(pdf(pages=["text"]) + b"\r\n\x00\x00" + b"<!-- served in 3 ms -->").text == "text"


def test_pdf_of_nothing_but_its_frame_is_poison() -> None:
    with pytest.raises(Poison, match="malformed"):
        parse(b"%PDF-1.7\n%%EOF\n")


def test_too_many_pages_are_poison_with_both_numbers(pdf: MakePdf) -> None:
    with pytest.raises(Poison, match="3 pages; the limit is 2"):
        parse(pdf(pages=["x"] * 3), Limits(max_pages=2))


def test_too_much_text_is_poison_with_the_limit(pdf: MakePdf) -> None:
    with pytest.raises(Poison, match="more than 100 characters"):
        parse(pdf(pages=["word " * 10] * 10), Limits(max_characters=100))


@pytest.mark.parametrize("seed", range(30))
def test_damaged_pdf_is_read_or_poison(pdf: MakePdf, seed: int) -> None:
    damaged = bytearray(pdf(pages=["first", "second"]))
    chance = random.Random(seed)  # noqa: S311 - reproducible damage, no secret
    for _ in range(20):
        damaged[chance.randrange(9, len(damaged))] = chance.randrange(256)
    with suppress(Poison):
        assert parse(bytes(damaged)).text
