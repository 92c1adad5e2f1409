# ruff: noqa: RUF001 -- sentences of many languages
import codecs
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.parsers.text import decode, parse, parse_markdown
from schemas.errors import Poison

MULTILINGUAL = "Größe: 12 m²\nЖизнь реки\n川の水 と 魚\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_every_unicode_encoding_is_told_from_the_bytes(encoding: str) -> None:
    assert parse(MULTILINGUAL.encode(encoding)).text == MULTILINGUAL


@pytest.mark.parametrize(
    ("mark", "encoding"), [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")], ids=["16", "32"]
)
def test_big_endian_mark_is_known(mark: bytes, encoding: str) -> None:
    assert parse(mark + MULTILINGUAL.encode(encoding)).text == MULTILINGUAL


@pytest.mark.parametrize("text", ["Zulauf 12 m\n", "Привет, мир. Река Эннель.\n", "水車 小屋 の 歴史\n"])
def test_utf16_without_a_mark_is_told_by_its_spaces(text: str) -> None:
    assert parse(text.encode("utf-16-le")).text == text
    assert parse(text.encode("utf-16-be")).text == text


def test_windows_1252_is_the_fallback() -> None:
    assert parse("Größe “fünf” … 3 €".encode("cp1252")).text == "Größe “fünf” … 3 €"


def test_one_broken_character_does_not_spoil_a_utf8_text() -> None:
    text = "Größe über alles, fünf Fässer, süß, Öl, Käse, Bär, Tür, grün" * 5
    assert parse(text.encode() + b" cut \xc3").text == text + " cut �"


RUSSIAN = "Водяная мельница работает круглый год, кроме половодья весной."
GREEK = "Ο νερόμυλος λειτουργεί όλο τον χρόνο, εκτός από την άνοιξη."
JAPANESE = "水車小屋の歴史。川の水が車輪を回し、ポンプの点検は春に行う。"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("koi8-r", RUSSIAN),
        ("cp1251", RUSSIAN),
        ("iso8859-5", RUSSIAN),
        ("cp1251", "Привет, мир"),
        ("cp1251", "2025-11-21 07:00 pump 3: 12.5 bar, all well\n" * 200 + "ошибка насоса, давление упало\n"),
        ("iso8859-7", GREEK),
        ("cp1253", GREEK),
        ("shift_jis", JAPANESE),
        ("euc_jp", JAPANESE),
        ("gb18030", "水车的历史：河水推动轮子，磨碎谷物。每年春天都要检修。"),
        ("big5", "水車的歷史：河水推動輪子，磨碎穀物。每年春天都要檢修。"),
        ("euc_kr", "물레방아는 일년 내내 돌아가며 봄에는 멈춘다."),
    ],
)
@pytest.mark.parametrize("times", [1, 50])
def test_languages_without_latin_letters_are_told_by_their_words(encoding: str, text: str, times: int) -> None:
    assert parse((text * times).encode(encoding)).text == text * times


@pytest.mark.parametrize(
    "text",
    [
        "Die Mühle läuft das ganze Jahr über, außer im Frühling – “fünf” Räder für 3 €.",
        "L'été à Noël: où çà? Là-bas, à côté du château.",
        "El señor Peña vivió aquí. ¿Cuándo?",
        "Å se på fjorden er hyggelig, sa Bjørn Kjærstad.",
        "A ação e a reação não são opções.",
        "12 °C, 3 m², ±5 µm",
        "Größe",
        "ÄÖÜ",
        "•••••••• Liste\n––––––––\n",
    ],
)
@pytest.mark.parametrize("times", [1, 50])
def test_western_text_is_windows_1252(text: str, times: int) -> None:
    assert parse((text * times).encode("cp1252")).text == text * times


@pytest.mark.parametrize(
    "log", [b"pump 3: 12.5 bar\n" * 200 + b"cut\0 off", b"\0" + b"pump 3: 12.5 bar, all well\n" * 3]
)
def test_a_stray_nul_does_not_make_a_log_utf16(log: bytes) -> None:
    for data in (log, log + b"\n"):  # of an odd and an even length
        assert parse(data).text == data.decode().replace("\0", "")


def test_encoding_that_cannot_be_told_is_poison_that_asks_for_utf8() -> None:
    with pytest.raises(Poison, match="UTF-8"):
        parse(b"un \x81 deux \x8d trois \x8f quatre \x90")


def test_binary_is_no_text() -> None:
    assert decode(bytes(range(256)) * 4) is None
    with pytest.raises(Poison, match="binary"):
        parse(b"\x00\x01\x02\x03")


def test_line_ends_become_line_feeds() -> None:
    assert parse(b"a\r\nb\rc\nd").text == "a\nb\nc\nd"


def test_plain_text_has_no_title_and_no_sections() -> None:
    parsed = parse(b"# not a heading\n")
    assert (parsed.media_type, parsed.title, parsed.sections) == ("text/plain", None, ())


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_poison(data: bytes) -> None:
    with suppress(Poison):
        assert isinstance(parse(data).text, str)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=300))
@example("\N{REPLACEMENT CHARACTER}")
def test_any_utf8_text_is_kept_as_it_is(text: str) -> None:
    if not text.startswith("\ufeff"):
        assert parse(text.encode()).text == text


def sections(markdown: str) -> list[tuple[str, str]]:
    """(first line at the section's start, label)."""
    parsed = parse_markdown(markdown.encode())
    return [(parsed.text[section.start :].split("\n")[0], section.label) for section in parsed.sections]


def test_markdown_headings_are_sections_that_begin_where_they_stand() -> None:
    assert sections("intro\n\n# Install\n\ntext\n\n## Linux ##\nmore\n\nUse\n===\n\nDetails\n---\n") == [
        ("# Install", "Install"),
        ("## Linux ##", "Install > Linux"),
        ("Use", "Use"),
        ("Details", "Use > Details"),
    ]


def test_markdown_stays_as_it_is_written() -> None:
    source = "# A\n\n[link](https://example.org) and `code`\n\n| a | b |\n|---|---|\n"
    assert parse_markdown(source.encode()).text == source


def test_title_is_the_first_heading_without_its_markup() -> None:
    source = b"## The **bold** [link](x) and `snake_case`\n# Later\n"
    assert parse_markdown(source).title == "The bold link and snake_case"


@pytest.mark.parametrize(
    "source",
    [
        "```sh\n# comment\n```\n",
        "~~~~\n# comment\n~~~\n# still code\n~~~~\n",
        "```\n# never closed\n",
        "    # indented code\n",
        "#hashtag\n",
        "####### seven\n",
        "---\ntitle: front matter\n# comment\nlast: line\n---\n",
        "- item\n---\n",
        "| a |\n---\n",
        "\n---\n",
        "\n===\n",
    ],
)
def test_what_only_looks_like_a_heading_is_none(source: str) -> None:
    assert sections(source) == []


def test_heading_after_a_code_block_is_one() -> None:
    assert sections("```\n# comment\n```\n# Real\n") == [("# Real", "Real")]


def test_markdown_without_headings_has_no_title() -> None:
    assert parse_markdown(b"words\n").title is None


@pytest.mark.parametrize(
    "line", ["# " + " " * 300_000 + "x", "# " + "[" * 300_000, "# " + "_" * 300_000, "#" * 300_000]
)
def test_hostile_heading_takes_no_quadratic_time(line: str) -> None:
    # A quadratic pattern would need hours, and the test's time limit would end it.
    assert parse_markdown(line.encode()).media_type == "text/markdown"
