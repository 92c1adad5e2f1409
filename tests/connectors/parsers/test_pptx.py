import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers.limits import Limits
from connectors.parsers.pptx import parse
from schemas.errors import Poison
from tests.connectors.parsers.building import core, pptx, rels, shape

LIMITS = Limits()


def test_slides_are_sections_that_count_from_one() -> None:
    parsed = parse(pptx([["first", "and more"], [], ["third"]]), LIMITS)
    assert parsed.text == "first\nand more\n\nthird"
    assert [(parsed.text[section.start :].split("\n")[0], section.label) for section in parsed.sections] == [
        ("first", "slide 1"),
        ("third", "slide 3"),
    ]


def test_notes_belong_to_their_slide_without_its_number() -> None:
    parsed = parse(pptx([["first"], ["second"]], notes={1: "say hello", 2: "pause"}), LIMITS)
    assert parsed.text == "first\n\nNotes: say hello\n\nsecond\n\nNotes: pause"
    assert len(parsed.sections) == 2


def test_order_is_that_of_the_presentation_not_of_the_names() -> None:
    swapped = rels({"rId1": ("slide", "slides/slide2.xml"), "rId2": ("slide", "slides/slide1.xml")})
    data = pptx([["first"], ["second"]], more={"ppt/_rels/presentation.xml.rels": swapped})
    assert parse(data, LIMITS).text == "second\n\nfirst"


def test_title_is_that_of_the_first_slide_unless_the_properties_have_one() -> None:
    slides = [shape(["Turbines"], placeholder="ctrTitle") + shape(["2025"], placeholder="ftr")]
    assert parse(pptx(slides), LIMITS).title == "Turbines"
    assert parse(pptx(slides), LIMITS).text == "Turbines"
    assert parse(pptx(slides, more={"docProps/core.xml": core("Deck")}), LIMITS).title == "Deck"


def test_table_is_written_row_by_row() -> None:
    cell = "<a:tc><a:txBody><a:p><a:r><a:t>{}</a:t></a:r></a:p></a:txBody></a:tc>"
    row = f"<a:tr>{cell.format('bolt')}{cell.format('2.60')}</a:tr>"
    table = f"<p:graphicFrame><a:graphic><a:tbl>{row}{row}</a:tbl></a:graphic></p:graphicFrame>"
    assert parse(pptx([table]), LIMITS).text == "bolt | 2.60\nbolt | 2.60"


def test_too_many_slides_are_poison_with_both_numbers() -> None:
    with pytest.raises(Poison, match="3 slides; the limit is 2"):
        parse(pptx([["x"]] * 3), Limits(max_pages=2))


def test_missing_slide_is_poison() -> None:
    with pytest.raises(Poison, match="it has no slide rId1"):
        parse(pptx([["x"]], more={"ppt/_rels/presentation.xml.rels": rels({})}), LIMITS)


@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
        )
    )
)
def test_every_word_comes_back_in_order(slides: list[list[str]]) -> None:
    assert parse(pptx(slides), LIMITS).text.split() == " ".join(word for lines in slides for word in lines).split()
