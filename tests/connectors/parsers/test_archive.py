import io
import random
import warnings
import zipfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parsers.archive import Archive
from connectors.parsers.limits import Limits
from schemas.errors import Poison
from tests.connectors.parsers.building import zipped

WORDS = b"a few words, and a few more. " * 40


def content(data: bytes, name: str = "a", limits: Limits | None = None) -> bytes:
    with Archive(data, limits or Limits()).open(name) as member:
        return b"".join(iter(lambda: member.read(1000), b""))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_member_comes_out_as_it_went_in(method: int) -> None:
    assert content(zipped({"a": WORDS, "b": b""}, method=method)) == WORDS
    assert content(zipped({"a": WORDS, "b": b""}, method=method), "b") == b""


def test_missing_member_is_poison_that_names_it() -> None:
    with pytest.raises(Poison, match="it has no member a/b"):
        content(zipped({"a": WORDS}), "a/b")


def test_two_members_of_one_name_are_poison_only_if_they_are_read() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as container, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("a", "b", "b"):
            container.writestr(name, WORDS)
    assert content(target.getvalue(), "a") == WORDS
    with pytest.raises(Poison, match="2 members named b"):
        content(target.getvalue(), "b")


def test_other_packing_methods_are_poison_that_names_the_method() -> None:
    with pytest.raises(Poison, match="packed by method 12"):
        content(zipped({"a": WORDS}, method=zipfile.ZIP_BZIP2))


def test_encrypted_member_is_poison_that_says_so() -> None:
    data = bytearray(zipped({"a": WORDS}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(Poison, match="encrypted"):
        content(bytes(data))


def test_content_that_does_not_fit_its_checksum_is_poison() -> None:
    data = bytearray(zipped({"a": WORDS}, method=zipfile.ZIP_STORED))
    data[100] ^= 1
    with pytest.raises(Poison, match="damaged zip container: a: Bad CRC"):
        content(bytes(data))


@pytest.mark.parametrize("claimed", [0, 1, 10**9])
def test_size_in_a_header_does_not_change_what_comes_out(claimed: int) -> None:
    data = bytearray(zipped({"a": WORDS}))
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = claimed.to_bytes(4, "little")
    with suppress(Poison):
        assert content(bytes(data)) == WORDS


def test_members_that_share_bytes_are_poison() -> None:
    data = bytearray(zipped({"a": WORDS, "b": WORDS}))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = (1).to_bytes(4, "little")
    with pytest.raises(Poison, match="a and b overlap"):
        content(bytes(data))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_members=2), "3 members; the limit is 2"),
        (Limits(max_member_bytes=1000), "b unpacks to more than 1000 bytes"),
        (Limits(max_unpacked_bytes=1000), "unpacks to more than 1000 bytes"),
        (Limits(max_ratio=100), "b unpacks to more than 100 times its size"),
    ],
)
def test_limit_is_named_by_what_goes_beyond_it(limits: Limits, message: str) -> None:
    with pytest.raises(Poison, match=message):
        content(zipped({"a": WORDS, "b": bytes(10_000_000), "c": b""}), "b", limits)


def test_all_that_is_read_counts_together() -> None:
    archive = Archive(zipped({"a": WORDS, "b": WORDS}), Limits(max_unpacked_bytes=len(WORDS) + 1))
    with archive.open("a") as member:
        while member.read():
            pass
    with archive.open("b") as member, pytest.raises(Poison, match="unpacks to more than"):
        member.read()


@given(st.binary())
def test_bytes_of_any_kind_are_an_archive_or_poison(junk: bytes) -> None:
    with suppress(Poison):
        content(b"PK\x03\x04" + junk)


@pytest.mark.parametrize("seed", range(300))
def test_damaged_archive_is_read_or_poison(seed: int) -> None:
    damaged = bytearray(zipped({"a": WORDS, "b": WORDS}))
    chance = random.Random(seed)  # noqa: S311 - reproducible damage, no secret
    for _ in range(4):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    with suppress(Poison):
        assert content(bytes(damaged)) == WORDS
