import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers.limits import Limits
from connectors.parsers.xlsx import parse
from schemas.errors import Poison
from tests.connectors.parsers.building import S, column, core, xlsx

LIMITS = Limits()


def rows(xml: str) -> str:
    return f"<worksheet {S}><sheetData>{xml}</sheetData></worksheet>"


def strings(*items: str) -> dict[str, str]:
    return {"xl/sharedStrings.xml": f"<sst {S}>{''.join(f'<si>{item}</si>' for item in items)}</sst>"}


def test_each_sheet_is_a_section_and_each_row_a_line() -> None:
    parsed = parse(xlsx({"Prices": [["item", "price"], ["bolt", 2.6]], "Blank": [], "Stock": [["bolt", 17]]}), LIMITS)
    assert parsed.text == "Prices\nitem | price\nbolt | 2.6\n\nStock\nbolt | 17"
    assert [(parsed.text[section.start :].split("\n")[0], section.label) for section in parsed.sections] == [
        ("Prices", 'sheet "Prices"'),
        ("Stock", 'sheet "Stock"'),
    ]


def test_shared_strings_are_looked_up() -> None:
    sheet = rows('<row><c t="s"><v>1</v></c><c t="s"><v>0</v></c></row>')
    shared = strings("<t>second</t>", "<r><t>fir</t></r><r><t>st</t></r><rPh><t>said so</t></rPh>")
    assert parse(xlsx({"S": sheet}, more=shared), LIMITS).text == "S\nfirst | second"


@pytest.mark.parametrize("number", ["2", "-1", "x", "9" * 5000])
def test_shared_string_that_is_not_there_is_poison(number: str) -> None:
    sheet = rows(f'<row><c t="s"><v>{number}</v></c></row>')
    with pytest.raises(Poison, match="damaged workbook"):
        parse(xlsx({"S": sheet}, more=strings("<t>a</t>", "<t>b</t>")), LIMITS)


@pytest.mark.parametrize(
    ("style", "value", "shown"),
    [
        (0, "45352", "45352"),
        (1, "45352", "2024-03-01"),
        (1, "45352.604166666664", "2024-03-01 14:30"),
        (2, "45352", "2024-03-01"),
        (3, "45352", "45352"),
        (4, "0.5", "12:00"),
        (5, "1.25", "1.25"),
        (6, "1.25", "1.25"),
        (1, "99999999", "99999999"),
        (1, "-1", "-1"),
    ],
)
def test_dates_are_told_by_their_format(style: int, value: str, shown: str) -> None:
    styles = (
        f'<styleSheet {S}><numFmts><numFmt numFmtId="164" formatCode="dd/mm/yyyy"/>'
        '<numFmt numFmtId="165" formatCode="0.00 &quot;days&quot;[Red]"/>'
        '<numFmt numFmtId="166" formatCode="[h]:mm"/></numFmts>'
        '<cellStyleXfs><xf numFmtId="14"/></cellStyleXfs><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/>'
        '<xf numFmtId="164"/><xf numFmtId="165"/><xf numFmtId="20"/><xf numFmtId="46"/><xf numFmtId="166"/></cellXfs>'
        "</styleSheet>"
    )
    sheet = rows(f'<row><c s="{style}"><v>{value}</v></c></row>')
    assert parse(xlsx({"S": sheet}, more={"xl/styles.xml": styles}), LIMITS).text == f"S\n{shown}"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ('<c t="b"><v>1</v></c>', "TRUE"),
        ('<c t="e"><v>#DIV/0!</v></c>', "#DIV/0!"),
        ('<c t="str"><f>A1&amp;"x"</f><v>ax</v></c>', "ax"),
        ("<c><f>0.1+0.2</f><v>0.30000000000000004</v></c>", "0.3"),
        ('<c t="d"><v>2024-03-01</v></c>', "2024-03-01"),
        ('<c t="inlineStr"><is><t>two\nlines_x000D_</t></is></c>', "two lines"),
        ("<c><v>1e400</v></c>", "1e400"),
        ("<c><v>many</v></c>", "many"),
    ],
)
def test_cells_of_every_type_are_shown(cell: str, shown: str) -> None:
    assert parse(xlsx({"S": rows(f"<row>{cell}</row>")}), LIMITS).text == f"S\n{shown}"


def test_cell_in_the_far_corner_costs_nothing() -> None:
    sheet = rows('<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>')
    assert parse(xlsx({"S": sheet}), LIMITS).text == "S\n1\n2"


def test_title_comes_from_the_properties() -> None:
    assert parse(xlsx({"S": [["x"]]}, more={"docProps/core.xml": core("Prices 2025")}), LIMITS).title == "Prices 2025"


def test_too_many_sheets_are_poison_with_both_numbers() -> None:
    with pytest.raises(Poison, match="3 sheets; the limit is 2"):
        parse(xlsx({f"S{number}": [["x"]] for number in range(3)}), Limits(max_pages=2))


def test_missing_sheet_is_poison() -> None:
    with pytest.raises(Poison, match="it has no sheet"):
        parse(
            xlsx({"S": [["x"]]}, more={"xl/workbook.xml": f"<workbook {S}><sheets><sheet/></sheets></workbook>"}),
            LIMITS,
        )


def test_columns_are_named_as_in_excel() -> None:
    assert [column(number) for number in (0, 25, 26, 16_383)] == ["A", "Z", "AA", "XFD"]


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=0xD7FF, exclude_characters="_|\x7f"))


@given(st.lists(st.lists(WORDS)))
def test_every_word_comes_back_in_order(values: list[list[str]]) -> None:
    found = parse(xlsx({"S": values}), LIMITS).text.removeprefix("S").replace(" | ", "\n").split()
    assert found == " ".join(cell for row in values for cell in row).split()
