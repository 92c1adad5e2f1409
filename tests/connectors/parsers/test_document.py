import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers.detect import MediaType
from connectors.parsers.document import parse
from connectors.parsers.limits import Limits
from schemas.errors import Poison
from tests.connectors.parsers.building import docx, mail, pptx, xlsx

SAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("data", [b" \n\t ", b"<html><body> &nbsp; </body></html>", b"\xef\xbb\xbf", b"\r\n"])
def test_document_of_white_space_is_poison_that_says_so(data: bytes) -> None:
    with pytest.raises(Poison, match=r"notes\.txt: .*white space"):
        parse(data, name="notes.txt", limits=Limits())


def test_message_names_the_document() -> None:
    with pytest.raises(Poison, match=r"^file:///a/empty\.txt: the document is empty"):
        parse(b"", name="file:///a/empty.txt", limits=Limits())


def test_too_much_text_is_poison_with_both_numbers() -> None:
    with pytest.raises(Poison, match="11 characters of text; the limit is 10"):
        parse(b"x" * 11, name="a", limits=Limits(max_characters=10))


def test_text_can_be_stored_anywhere() -> None:
    # NUL breaks PostgreSQL and half a surrogate pair breaks JSON.
    parsed = parse(b"<p>a&#xD800;b\x0cc\x7f</p>" + b"<p>words</p>" * 20, name="a", limits=Limits())
    parsed.text.encode()
    assert all(character.isprintable() or character == "\n" for character in parsed.text)


def test_title_and_labels_can_be_stored_anywhere() -> None:
    parsed = parse(b"# a\x01b\x7f " + b"words " * 100, name="a.md", limits=Limits())
    assert parsed.title
    assert (parsed.title + parsed.sections[0].label).isprintable()


def test_each_type_reaches_its_parser(pdf: Callable[..., bytes]) -> None:
    found = {
        parse(data, name=name, limits=Limits()).media_type
        for data, name in [
            (pdf(pages=["x"]), "a.bin"),
            (b"<!doctype html><p>x", "a.bin"),
            (b"# x", "a.md"),
            (b"x", "a.txt"),
            (docx(["x"]), "a.bin"),
            (xlsx({"S": [["x"]]}), "a.bin"),
            (pptx([["x"]]), "a.bin"),
            (mail(subject="x", body="y"), "a.bin"),
        ]
    }
    assert found == {kind for kind in get_args(MediaType) if not kind.startswith("image/")}


@given(
    st.sampled_from([b"", b"PK\x03\x04", b"%PDF-1.7\n", b"<html>", b"From: a\nTo: b\nDate: c\n", b"\xff\xfe", b"# "]),
    st.binary(),
    st.sampled_from(["a.md", "a"]),
)
def test_bytes_of_any_kind_are_a_document_or_poison(head: bytes, rest: bytes, name: str) -> None:
    with suppress(Poison):
        assert parse(head + rest, name=name, limits=Limits()).text.strip()


def samples() -> list[Path]:
    return sorted((SAMPLES / "documents").iterdir())


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_sample_document_is_read(path: Path) -> None:
    parsed = parse(path.read_bytes(), name=path.name, limits=Limits())
    assert 300 <= len(parsed.text.split()) <= 1200
    assert "secret" not in parsed.text


def test_samples_cover_every_type_and_their_pdfs_have_several_pages() -> None:
    parsed = [parse(path.read_bytes(), name=path.name, limits=Limits()) for path in samples()]
    kinds = [document.media_type for document in parsed]
    assert len(kinds) >= 14
    assert all(kinds.count(kind) >= 3 for kind in ("application/pdf", "text/html", "text/markdown", "text/plain"))
    assert all(len(document.sections) > 1 for document in parsed if document.media_type == "application/pdf")


def demo_questions() -> list[tuple[str, list[str]]]:
    """(document, figures that its answer holds), from the table in examples/README.md."""
    rows = [line.split("|") for line in (SAMPLES / "README.md").read_text().splitlines() if "?" in line]
    return [(row[2].split("`")[1], re.findall(r"\d[\d.,]*\d|\d", row[3])) for row in rows]


@pytest.mark.parametrize(("name", "figures"), demo_questions())
def test_answer_to_a_demo_question_is_in_the_named_document(name: str, figures: list[str]) -> None:
    parsed = parse((SAMPLES / "documents" / name).read_bytes(), name=name, limits=Limits())
    assert figures
    assert all(figure in parsed.text for figure in figures)
