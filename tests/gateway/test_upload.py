"""Documents on their way into the object store."""

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from connectors.object_store import ObjectStore
from gateway.problems import Problem
from gateway.upload import Form, Received, boundary_of, receive

BOUNDARY = b"limit-of-parts"
END = b"--" + BOUNDARY + b"--\r\n"


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return b"--" + BOUNDARY + b"\r\n" + head.encode() + value + b"\r\n"


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(objects: Path) -> ObjectStore:
    return ObjectStore(str(objects))


def received(store: ObjectStore, chunks: Iterable[bytes], *, max_bytes: int = 1_000_000) -> Received:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    def named(form: Form) -> str:
        return form.key(form.fields.get("tenant", "default"))

    return asyncio.run(receive(body(), BOUNDARY, store, max_bytes=max_bytes, named=named))


def refused(store: ObjectStore, chunks: Iterable[bytes], *, max_bytes: int = 1_000_000) -> Problem:
    with pytest.raises(Problem) as raised:
        received(store, chunks, max_bytes=max_bytes)
    return raised.value


def left(objects: Path) -> list[Path]:
    return [path for path in objects.rglob("*") if path.is_file()]


def test_a_file_is_stored_byte_for_byte_and_its_fields_are_known(store: ObjectStore) -> None:
    content = bytes(range(256)) * 100 + b"\r\n--limit-of"
    body = part("collection", b"manuals") + part("file", content, "turbine manual.pdf") + part("tenant", b"acme") + END
    got = received(store, [body])
    assert got.form.fields == {"collection": "manuals", "tenant": "acme"}
    assert got.form.filename == "turbine manual.pdf"
    assert got.form.sha256 == hashlib.sha256(content).hexdigest()
    assert got.uri.endswith(f"/uploads/acme/{got.form.sha256}/turbine_manual.pdf")
    assert asyncio.run(store.read(got.uri, max_bytes=1_000_000)) == content


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_it_does_not_matter_how_a_body_is_cut(store: ObjectStore, size: int) -> None:
    body = part("file", b"content\r\n" * 50, "a.txt") + part("collection", b"manuals") + END
    got = received(store, (body[start : start + size] for start in range(0, len(body), size)))
    assert asyncio.run(store.read(got.uri, max_bytes=1000)) == b"content\r\n" * 50
    assert got.form.fields == {"collection": "manuals"}


def test_the_same_file_is_the_same_object(store: ObjectStore, objects: Path) -> None:
    body = part("file", b"content", "a.txt") + END
    assert received(store, [body]).uri == received(store, [body]).uri
    assert len(left(objects)) == 1


@pytest.mark.parametrize(
    ("filename", "last"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        (".hidden", "hidden"),
        ("größe.md", "gr_e.md"),
        ("…", "_"),
        ("...", "document"),
        ("a" * 300 + ".md", "a" * 97 + ".md"),
        ("C:\\\\docs\\\\a.txt", "a.txt"),
    ],
)
def test_a_file_name_is_part_of_the_key_whatever_it_is(store: ObjectStore, filename: str, last: str) -> None:
    got = received(store, [part("file", b"content", filename) + END])
    assert got.uri.rsplit("/", 1)[-1] == last


def test_a_file_of_the_limit_is_taken_and_one_byte_more_leaves_nothing_behind(
    store: ObjectStore, objects: Path
) -> None:
    problem = refused(store, [part("file", b"x" * 1001, "a.txt") + END], max_bytes=1000)
    assert problem.status == 413
    assert left(objects) == []
    assert received(store, [part("file", b"x" * 1000, "a.txt") + END], max_bytes=1000).form.size_bytes == 1000


def test_an_endless_body_is_cut_off_at_the_limit_in_little_memory(store: ObjectStore, objects: Path) -> None:
    def endless() -> Iterable[bytes]:
        yield part("file", b"", "a.txt")[:-2]
        while True:
            yield b"x" * 65_536

    tracemalloc.start()
    problem = refused(store, endless(), max_bytes=100_000_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problem.status == 413
    assert peak_bytes < 8_000_000
    assert left(objects) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (part("file", b"", "a.txt") + END, 422),
        (part("collection", b"manuals") + END, 422),
        (part("file", b"x", "a") + part("file", b"y", "b") + END, 422),
        (part("file", b"x", "a") + part("password", b"y") + END, 422),
        (part("collection", b"x" * 5000) + END, 413),
        (part("collection", b"\xff") + part("file", b"x", "a") + END, 400),
        (part("collection", b"x") * 17 + END, 400),
        (part("file", b"cut off", "a.txt")[:-4], 400),
        (part("file", b"no end", "a.txt"), 400),
        (b"{}", 400),
        (b"", 400),
        (END, 422),
        (b"--" + BOUNDARY + b"\r\n" + b"X: y\r\n" * 100 + b"\r\nx\r\n" + END, 400),
        (b"--" + BOUNDARY + b"\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n" + END, 400),
    ],
)
def test_what_is_no_single_document_is_refused_and_leaves_nothing_behind(
    store: ObjectStore, objects: Path, body: bytes, status: int
) -> None:
    assert refused(store, [body]).status == status
    assert left(objects) == []


def test_a_client_that_goes_away_leaves_nothing_behind(store: ObjectStore, objects: Path) -> None:
    def cut_off() -> Iterable[bytes]:
        yield part("file", b"x" * 3_000_000, "a.txt")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        received(store, cut_off(), max_bytes=10_000_000)
    assert left(objects) == []


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; boundary="a b"', b"a b"),
        ("multipart/form-data", b""),
        ("application/json", None),
        ("", None),
    ],
)
def test_the_boundary_is_in_the_content_type(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary
