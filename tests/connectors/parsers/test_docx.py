import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers.docx import parse
from connectors.parsers.limits import Limits
from schemas.errors import Poison
from tests.connectors.parsers.building import W, docx, paragraph, table

LIMITS = Limits()


def test_paragraphs_are_kept_apart() -> None:
    assert parse(docx(["First one.", "", "Second   one."]), LIMITS).text == "First one.\n\nSecond one."


def test_headings_become_sections_whatever_language_word_speaks() -> None:
    body = (
        paragraph("The manual", style="Titel")
        + paragraph("Installation", style="berschrift1")
        + paragraph("words")
        + paragraph("Linux", style="berschrift2")
        + paragraph("more")
    )
    parsed = parse(docx(body=body), LIMITS)
    assert parsed.title == "The manual"
    assert [(parsed.text[section.start :].split("\n")[0], section.label) for section in parsed.sections] == [
        ("The manual", "The manual"),
        ("Installation", "Installation"),
        ("Linux", "Installation > Linux"),
    ]


def test_outline_level_of_the_paragraph_itself_makes_a_heading() -> None:
    body = '<w:p><w:pPr><w:outlineLvl w:val="0"/></w:pPr><w:r><w:t>Scope</w:t></w:r></w:p>' + paragraph("words")
    assert [section.label for section in parse(docx(body=body), LIMITS).sections] == ["Scope"]


def test_style_inherits_its_level() -> None:
    style = (
        '<w:style w:styleId="Mine"><w:name w:val="Mine"/><w:basedOn w:val="H"/></w:style>'
        '<w:style w:styleId="H"><w:name w:val="Heading 1"/></w:style>'
    )
    data = docx(body=paragraph("Scope", style="Mine"), more={"word/styles.xml": f"<w:styles {W}>{style}</w:styles>"})
    assert [section.label for section in parse(data, LIMITS).sections] == ["Scope"]


def test_styles_that_inherit_from_each_other_end() -> None:
    style = (
        '<w:style w:styleId="A"><w:name w:val="A"/><w:basedOn w:val="B"/></w:style>'
        '<w:style w:styleId="B"><w:name w:val="B"/><w:basedOn w:val="A"/></w:style>'
    )
    data = docx(body=paragraph("words", style="A"), more={"word/styles.xml": f"<w:styles {W}>{style}</w:styles>"})
    assert parse(data, LIMITS).text == "words"


def test_table_is_written_row_by_row() -> None:
    data = docx(body=paragraph("before") + table([["item", "price"], ["bolt", "2.60"]]) + paragraph("after"))
    assert parse(data, LIMITS).text == "before\n\nitem | price\nbolt | 2.60\n\nafter"


def test_table_in_a_table_belongs_to_its_cell() -> None:
    inner = table([["a", "b"], ["c", "d"]])
    data = docx(body=f"<w:tbl><w:tr><w:tc>{inner}{paragraph('e')}</w:tc><w:tc>{paragraph('f')}</w:tc></w:tr></w:tbl>")
    assert parse(data, LIMITS).text == "a | b c | d e | f"


def test_list_items_stand_together() -> None:
    item = '<w:p><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>'
    data = docx(body=paragraph("Bring:") + item.format("rope") + item.format("lamp"))
    assert parse(data, LIMITS).text == "Bring:\n\n- rope\n- lamp"


def test_text_box_is_read_once() -> None:
    box = f"<w:txbxContent>{paragraph('in the box')}</w:txbxContent>"
    either = f"<m:Choice>{box}</m:Choice><m:Fallback>{box}</m:Fallback>"
    choices = f'<m:AlternateContent xmlns:m="m">{either}</m:AlternateContent>'
    data = docx(body=f"<w:p><w:r>{choices}</w:r><w:r><w:t>around it</w:t></w:r></w:p>")
    assert parse(data, LIMITS).text == "in the box\n\naround it"


def test_deleted_text_field_codes_and_table_of_contents_are_left_out() -> None:
    body = (
        "<w:p><w:r><w:t>kept</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:r><w:instrText>PAGEREF x</w:instrText></w:r><w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom></w:p>"
    )
    assert parse(docx(body=body + paragraph("Scope 3", style="V1")), LIMITS).text == "kept"


def test_tabs_and_breaks_are_kept_as_white_space_and_tab_stops_are_none() -> None:
    stops = "<w:pPr><w:tabs><w:tab/></w:tabs></w:pPr>"
    words = "<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>"
    assert parse(docx(body=f"<w:p>{stops}{words}</w:p>"), LIMITS).text == "a b\nc"


def test_footnotes_follow_the_text_without_the_line_above_them() -> None:
    line = f'<w:footnote w:type="separator">{paragraph("-")}</w:footnote>'
    notes = f"{line}<w:footnote>{paragraph('see page 7')}</w:footnote>"
    data = docx(["words"], more={"word/footnotes.xml": f"<w:footnotes {W}>{notes}</w:footnotes>"})
    assert parse(data, LIMITS).text == "words\n\nsee page 7"


def test_title_in_the_properties_comes_first() -> None:
    assert parse(docx(body=paragraph("x", style="Titel"), title="Yearly  report"), LIMITS).title == "Yearly report"


def test_strict_variant_is_read_alike() -> None:
    strict = 'xmlns:w="http://purl.oclc.org/ooxml/wordprocessingml/main"'
    main = f"<w:document {strict}><w:body>{paragraph('words')}</w:body></w:document>"
    assert parse(docx(more={"word/document.xml": main}), LIMITS).text == "words"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_characters=10), "more than 10 characters"),
        (Limits(max_members=2), "members; the limit is 2"),
        (Limits(max_member_bytes=100), "unpacks to more than 100 bytes"),
        (Limits(max_unpacked_bytes=1000), "unpacks to more than 1000 bytes"),
    ],
)
def test_what_is_beyond_a_limit_is_poison_that_names_it(limits: Limits, message: str) -> None:
    with pytest.raises(Poison, match=message):
        parse(docx(["a few words in a paragraph"] * 20), limits)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff")))
)
def test_every_word_comes_back_in_order(paragraphs: list[str]) -> None:
    assert parse(docx(paragraphs), LIMITS).text.split() == " ".join(paragraphs).split()
