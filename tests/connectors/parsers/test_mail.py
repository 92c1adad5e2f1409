from contextlib import suppress
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers.limits import Limits
from connectors.parsers.mail import parse
from connectors.parsers.port import Attachment
from schemas.errors import Poison
from tests.connectors.parsers.building import File, mail, multipart, text_part

LIMITS = Limits()
BIND = "From: Ann <ann@example.org>\nTo: bob@example.org\nDate: Fri, 21 Nov 2025 07:00:00 +0000\nSubject: {}\n\n{}"


def test_headers_and_body_are_the_text() -> None:
    parsed = parse(mail(subject="Flood stage", body="It is black.\r\n\r\nAnn"), LIMITS)
    assert parsed.text == BIND.format("Flood stage", "It is black.\n\nAnn")
    assert (parsed.media_type, parsed.title, parsed.attachments) == ("message/rfc822", "Flood stage", ())


def test_what_the_standard_library_writes_is_read_back() -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Ann", "bob@example.org", "Größe und Länge €"
    message.set_content("Schöne Grüße\n")
    message.add_alternative("<p>Schöne <b>Grüße</b></p>", subtype="html")
    message.add_attachment(b"\x00\x01", maintype="application", subtype="pdf", filename="Übersicht.pdf")
    message.add_attachment("a,b\n", subtype="csv", filename="a.csv")
    parsed = parse(message.as_bytes(), LIMITS)
    assert parsed.text == "From: Ann\nTo: bob@example.org\nSubject: Größe und Länge €\n\nSchöne Grüße"
    assert parsed.attachments == (
        Attachment("Übersicht.pdf", "application/pdf", b"\x00\x01"),
        Attachment("a.csv", "text/csv", b"a,b\n"),
    )


def test_html_is_read_where_nothing_is_said_in_plain_text() -> None:
    page = text_part("<h1>News</h1><p>Flood</p><script>x()</script>", "html")
    parsed = parse(mail(subject="x", body=multipart([text_part(" "), page], subtype="alternative")), LIMITS)
    assert parsed.text == BIND.format("x", "News\n\nFlood")
    assert [(parsed.text[section.start :], section.label) for section in parsed.sections] == [("News\n\nFlood", "News")]


def test_of_alternatives_one_is_read_and_of_other_parts_all() -> None:
    either = multipart([text_part("plain"), text_part("<p>rich", "html")], subtype="alternative", boundary="inner")
    parsed = parse(mail(subject="x", body=multipart([either, text_part("<p>footer", "html")])), LIMITS)
    assert parsed.text == BIND.format("x", "plain\n\nfooter")


def test_charset_of_the_mail_outranks_that_of_its_page() -> None:
    page = 'Content-Type: text/html; charset=iso-8859-1\n\n<meta charset="utf-8"><p>Größe'.encode("latin-1")
    assert "Größe" in parse(mail(subject="x", body=page), LIMITS).text


def image(*headers: str) -> bytes:
    return "\n".join(["Content-Type: image/png; name=logo.png", *headers, "", "pixels"]).encode()


@pytest.mark.parametrize(
    ("subtype", "headers", "is_attachment"),
    [
        ("related", ["Content-ID: <logo@x>"], False),
        ("related", ["Content-ID: <logo@x>", "Content-Disposition: inline; filename=logo.png"], False),
        ("mixed", ["Content-ID: <logo@x>", "Content-Disposition: inline"], False),
        ("mixed", ["Content-ID: <scan@x>"], True),
        ("mixed", ["Content-Disposition: inline; filename=scan.png"], True),
        ("related", ["Content-ID: <scan@x>", "Content-Disposition: attachment"], True),
    ],
)
def test_an_image_that_the_body_shows_is_no_attachment(
    subtype: str, headers: list[str], *, is_attachment: bool
) -> None:
    page = text_part('<p>Flood</p><img src="cid:logo@x">', "html")
    parsed = parse(mail(subject="x", body=multipart([page, image(*headers)], subtype=subtype)), LIMITS)
    assert parsed.text == BIND.format("x", "Flood")
    assert len(parsed.attachments) == is_attachment


def test_message_inside_is_one_attachment() -> None:
    inner = mail(subject="inner", body="words")
    data = mail(subject="outer", body=multipart([text_part("see below"), b"Content-Type: message/rfc822\n\n" + inner]))
    assert parse(data, LIMITS).attachments == (Attachment("part 2.eml", "message/rfc822", inner),)


def test_named_text_is_an_attachment() -> None:
    named = b"Content-Type: text/plain\nContent-Disposition: attachment; filename=notes.md\n\n# Notes"
    parsed = parse(mail(subject="x", body=multipart([text_part("see"), named])), LIMITS)
    assert parsed.text.endswith("see")
    assert parsed.attachments == (Attachment("notes.md", "text/plain", b"# Notes"),)


def test_signature_is_left_out() -> None:
    signed = multipart([text_part("words"), b"Content-Type: application/pgp-signature\n\n-----"], subtype="signed")
    assert parse(mail(subject="x", body=signed), LIMITS).attachments == ()


@pytest.mark.parametrize(
    ("name", "kept"),
    [("../../etc/passwd", "passwd"), ("C:\\x\\a.pdf", "a.pdf"), ("..", "part 1"), ("a\x01b", "a b"), ("", "part 1")],
)
def test_name_of_an_attachment_is_never_a_path(name: str, kept: str) -> None:
    part = File(name.replace("\\", "\\\\"), "application/pdf", b"x").part()
    assert [each.name for each in parse(mail(subject="x", body=multipart([part])), LIMITS).attachments] == [kept]


@pytest.mark.parametrize(
    ("encoding", "content", "expected"),
    [
        ("base64", b"d29yZHM", "words"),
        ("base64", b"!d2*9y\nZH\x00M=", "words"),
        ("base64", b"d29yZHMgX", "words"),
        ("BASE64 ", b"d29yZHM=", "words"),
        ("quoted-printable", b"wo=72ds=ZZ=", "words=ZZ"),
        ("x-unknown", b"words", "words"),
    ],
)
def test_broken_encodings_are_read_as_far_as_they_go(encoding: str, content: bytes, expected: str) -> None:
    body = f"Content-Type: text/plain\nContent-Transfer-Encoding: {encoding}\n\n".encode() + content
    assert parse(mail(subject="x", body=body), LIMITS).text.split("\n\n")[1].startswith(expected)


@pytest.mark.parametrize("charset", ["x-none", "rot13", "utf-8\x00", "é", "idna", "unicode_escape", "=?x?q?y?="])
def test_charset_that_is_none_is_guessed(charset: str) -> None:
    body = f"Content-Type: text/plain; charset={charset}\n\nGröße".encode()
    assert parse(mail(subject="x", body=body), LIMITS).text.endswith("Größe")


@pytest.mark.parametrize(
    "subject", ["=?utf-8?b?!!!?=", "=?none?q?Gr=C3=BC=C3=9Fe?=", "=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"]
)
def test_subject_is_decoded_as_far_as_it_goes(subject: str) -> None:
    title = parse(mail(subject=subject, body="x"), LIMITS).title
    assert title
    assert "!!!" in subject or title == "Grüße"


def test_multipart_without_its_boundary_is_read_as_text() -> None:
    body = b"Content-Type: multipart/mixed; boundary=a\n\nwords"
    assert parse(mail(subject="x", body=body), LIMITS).text == BIND.format("x", "words")


def test_multipart_that_was_cut_off_is_read_to_its_end() -> None:
    whole = mail(subject="x", body=multipart([text_part("first"), text_part("second and last")]))
    assert parse(whole[: whole.rindex(b"ast")], LIMITS).text == BIND.format("x", "first\n\nsecond and l")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_attachments=2), "more than 2 attachments"),
        (Limits(max_attachment_bytes=5), "more than 5 bytes of attachments"),
        (Limits(max_members=2), "more than 2 parts"),
        (Limits(max_nesting=0), "nested more than 0 deep"),
        (Limits(max_characters=20), "more than 20 characters"),
    ],
)
def test_what_is_beyond_a_limit_is_poison_that_names_it(limits: Limits, message: str) -> None:
    with pytest.raises(Poison, match=message):
        parse(mail(subject="x", body=multipart([File("a.bin", "a/b", b"xx").part()] * 3)), limits)


HEADERS = st.sampled_from(["Content-Type", "Content-Disposition", "Content-Transfer-Encoding", "Subject", "To"])
WORDS = (*"=?;*\"\\/'%() \tabquft-8120:<>@,é\udc80", "boundary=", "charset", "filename*0*=")
VALUES = st.lists(st.sampled_from(WORDS)).map("".join)


@given(st.lists(st.tuples(HEADERS, VALUES)), st.binary())
def test_headers_of_any_kind_are_a_mail_or_poison(headers: list[tuple[str, str]], body: bytes) -> None:
    head = "From: a\n" + "".join(f"{name}: {value}\n" for name, value in headers) + "\n"
    with suppress(Poison):
        assert parse(head.encode("utf-8", "surrogateescape") + body, LIMITS).text


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"])), st.binary())
def test_attachment_comes_back_byte_for_byte(body: str, data: bytes) -> None:
    parsed = parse(mail(subject="x", body=multipart([text_part(body), File("a.bin", "a/b", data).part()])), LIMITS)
    assert parsed.text.split() == BIND.format("x", body).split()
    assert parsed.attachments == (Attachment("a.bin", "a/b", data),)
