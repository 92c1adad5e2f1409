import time
from contextlib import suppress

import pytest

from connectors.parsers.html import _check_attributes, parse
from schemas.errors import Poison


def text(body: str) -> str:
    return parse(f"<!doctype html><html><body>{body}</body></html>".encode()).text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<p>one</p><p>two</p>", "one\n\ntwo"),
        ("<p>one\n   two\t three</p>", "one two three"),
        ("one<br>two", "one\ntwo"),
        ("<div>one</div><div>two</div>", "one\ntwo"),
        ("<b>bo</b>ld and <i> italic </i>text", "bold and italic text"),
        ("one<!-- comment -->two", "onetwo"),
        ("<ul><li>one</li><li>two</li></ul>", "- one\n- two"),
        ("<ul><li></li><li>two</li></ul>after", "- two\n\nafter"),
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>", "a | b\n1 | 2"),
        ("<table><tr><td></td><td>2</td></tr></table>", "2"),
        ("<pre>\nx = 1\n  y = <b>2</b>\n</pre>", "x = 1\n  y = 2\n"),
        ("&lt;b&gt; &amp; &eacute; &#x20AC; a&nbsp;b", "<b> & é € a b"),
        ("<dl><dt>term</dt><dd>meaning</dd></dl>", "term\nmeaning"),
    ],
)
def test_layout_becomes_lines(body: str, expected: str) -> None:
    assert text(body) == expected


@pytest.mark.parametrize(
    "hidden",
    [
        "<script>secret()</script>",
        "<style>p { color: secret }</style>",
        "<nav><a href='/'>secret</a></nav>",
        "<div role='navigation'>secret</div>",
        "<p hidden>secret</p>",
        "<noscript>secret</noscript>",
        "<template><p>secret</p></template>",
        "<svg><title>secret</title></svg>",
        "<button>secret</button>",
        "<select><option>secret</option></select>",
    ],
)
def test_what_is_no_content_is_left_out_and_what_follows_is_not(hidden: str) -> None:
    assert text(f"<p>before</p>{hidden}<p>after</p>") == "before\n\nafter"


def test_headings_are_sections_that_begin_where_they_stand() -> None:
    page = b"<h1>Top</h1><p>a</p><h2>One <em>two</em></h2><p>b</p><h3>Deep</h3><p>c</p><h2>Last</h2><p>d</p>"
    parsed = parse(page)
    assert [(parsed.text[section.start :].split("\n")[0], section.label) for section in parsed.sections] == [
        ("Top", "Top"),
        ("One two", "One two"),
        ("Deep", "One two > Deep"),
        ("Last", "Last"),
    ]


def test_title_comes_from_the_head_or_else_from_the_first_heading() -> None:
    assert parse(b"<title> A &amp;\n B </title><h1>C</h1>").title == "A & B"
    assert parse(b"<p>x</p><h2>Not</h2><h1>C</h1>").title == "C"
    assert parse(b"<p>x</p>").title is None


@pytest.mark.parametrize(
    ("encoding", "declaration"),
    [
        ("utf-8", '<meta charset="utf-8">'),
        ("utf-8", ""),
        ("utf-8-sig", '<meta charset="windows-1252">'),
        ("utf-16", ""),
        ("utf-16-le", ""),
        ("cp1252", ""),
        ("cp1252", '<meta charset="iso-8859-1">'),
        ("iso-8859-15", '<meta http-equiv="Content-Type" content="text/html; charset=ISO-8859-15">'),
    ],
)
def test_encoding_is_found(encoding: str, declaration: str) -> None:
    page = f"<html><head>{declaration}</head><body><p>Größe é</p></body></html>"
    assert parse(page.encode(encoding)).text == "Größe é"


@pytest.mark.parametrize(
    ("encoding", "word"), [("shift_jis", "水車小屋"), ("koi8-r", "река"), ("gbk", "水车"), ("euc-kr", "물레방아")]
)
def test_declared_encoding_of_another_script_is_obeyed(encoding: str, word: str) -> None:
    assert parse(f"<meta charset='{encoding}'><p>{word}</p>".encode(encoding)).text == word


def test_xml_declaration_of_the_encoding_is_obeyed() -> None:
    page = '<?xml version="1.0" encoding="koi8-r"?><html><body><p>река</p></body></html>'
    assert parse(page.encode("koi8-r")).text == "река"


@pytest.mark.parametrize("label", ["no-such-encoding", "rot13", "zlib", "idna", "unicode_escape", "utf-7"])
def test_declared_encoding_that_browsers_do_not_know_is_ignored(label: str) -> None:
    assert parse(f'<meta charset="{label}"><p>Größe</p>'.encode()).text == "Größe"


def test_10000_levels_are_poison_rather_than_half_a_text() -> None:
    page = b"<html><body>" + b"<div>" * 10_000 + b"deep" + b"</div>" * 10_000 + b"<p>after</p>"
    with pytest.raises(Poison, match="levels deep"):
        parse(page)


def test_200_levels_are_fine() -> None:
    assert text("<div>" * 200 + "deep" + "</div>" * 200 + "<p>after</p>") == "deep\n\nafter"


def test_value_over_10_mb_is_poison_rather_than_half_a_text() -> None:
    with pytest.raises(Poison, match="10 MB"):
        parse(b"<p>" + b"x" * 12_000_000 + b"</p><p>after</p>")


@pytest.mark.parametrize(
    "page",
    [b"<p>one<p>two</b></i></p></table>", b"<html><p>a<table><p>b", b"<p>a\x00b</p>", b"<p>&#xD800;&#0;</p>", b"<p"],
)
def test_broken_html_is_read_as_far_as_a_browser_would(page: bytes) -> None:
    assert parse(page).media_type == "text/html"


def test_page_without_any_element_is_poison() -> None:
    with pytest.raises(Poison, match="without any element"):
        parse(b"<!-- only a comment -->")


def test_a_drawing_of_thousands_of_numbers_is_one_attribute() -> None:
    path = " ".join(f"{number}.5" for number in range(6_000))
    assert text(f'<svg viewBox="0 0 9 9"><path d="M {path} Z"/></svg><p>Closed in March.</p>') == "Closed in March."


def test_5000_attributes_are_read_and_one_more_is_poison() -> None:
    attributes = " ".join(f"a{number}='1'" for number in range(5_000))
    assert text(f"<p {attributes}>words</p>") == "words"
    with pytest.raises(Poison, match="more than 5000 attributes"):
        text(f"<p {attributes} one_more>words</p>")


@pytest.mark.parametrize(
    "start", ["<!--", '<p a="', "<p a='\"", "<a ", "<p " + "a " * 4_999 + "<", "<script>", " / =<a"]
)
def test_counting_attributes_takes_no_quadratic_time(start: str) -> None:
    page = start * (1_000_000 // len(start))
    began = time.process_time()
    with suppress(Poison):
        _check_attributes(page)
    assert time.process_time() - began < 5  # a quadratic pattern would need hours
