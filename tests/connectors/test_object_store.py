import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import fsspec  # type: ignore[import-untyped]  # it publishes no types
import pytest

from connectors.object_store import ObjectStore, file_uri, shown_uri
from schemas.errors import Fatal, HeadraceError, Poison, Retryable

LIMIT = 1_000_000


class BrokenStore(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec publishes no types
    """A remote store whose objects are named after the error that reading them meets."""

    protocol = "broken"

    def info(self, path: str, **_: object) -> dict[str, object]:
        error = {
            "refused": ConnectionRefusedError("connection refused"),
            "timeout": TimeoutError("timed out"),
            "plugin": RuntimeError("endpoint unreachable"),
            "denied": PermissionError("403 forbidden"),
            "missing": FileNotFoundError("no such key"),
        }[path.rsplit("/", maxsplit=1)[-1]]
        raise error


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


@pytest.fixture
def store(tmp_path: Path, root: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "objects"), file_roots=(root,), protocols=("memory",))


@pytest.fixture
def broken_store(tmp_path: Path) -> ObjectStore:
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    return ObjectStore(str(tmp_path / "objects"), protocols=("broken",))


def read(store: ObjectStore, uri: str, max_bytes: int = LIMIT) -> bytes:
    return asyncio.run(store.read(uri, max_bytes=max_bytes))


def write(store: ObjectStore, key: str, data: bytes) -> str:
    return asyncio.run(store.write(key, data))


@pytest.mark.parametrize("name", ["plain.txt", "with space.txt", "größe 50%.txt", "hash#query?.txt", "%41.txt"])
def test_any_file_name_survives_the_way_through_a_file_uri(store: ObjectStore, root: Path, name: str) -> None:
    (root / name).write_bytes(b"content")
    assert read(store, file_uri(root / name)) == b"content"


def test_file_name_that_is_no_utf8_survives_the_way_through_a_file_uri(store: ObjectStore, root: Path) -> None:
    path = root / os.fsdecode(b"caf\xe9.txt")
    path.write_bytes(b"content")
    assert file_uri(path).endswith("/caf%E9.txt")
    assert read(store, file_uri(path)) == b"content"


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://localhost{}", "FILE://{}"])
def test_every_form_of_a_local_address_is_read(store: ObjectStore, root: Path, form: str) -> None:
    (root / "a.txt").write_bytes(b"content")
    assert read(store, form.format(root / "a.txt")) == b"content"


def test_percent_sign_in_a_plain_path_is_taken_as_it_is(store: ObjectStore, root: Path) -> None:
    (root / "%41.txt").write_bytes(b"percent")
    (root / "A.txt").write_bytes(b"letter")
    assert read(store, str(root / "%41.txt")) == b"percent"
    assert read(store, f"file://{root}/%41.txt") == b"letter"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file://fileserver/share/a.txt", "another machine"),
        ("relative/a.txt", "neither an absolute path nor a URI"),
        ("file:relative/a.txt", "neither an absolute path nor a URI"),
        ("file:///tmp/a%00.txt", "no path"),
        ("file:///tmp/a.txt#page=3", "%23"),
        ("https://example.org/a.pdf", "HEADRACE_HTTP_HOSTS"),
        ("ftp://example.org/a.pdf", "HEADRACE_STORE_PROTOCOLS"),
        ("s3://bucket/a.pdf", "HEADRACE_STORE_PROTOCOLS"),
        ("data:text/plain,hello", "HEADRACE_STORE_PROTOCOLS"),
        ("zip://a::file:///etc/passwd", "chained"),
        ("memory://a::file:///etc/passwd", "chained"),
        ("local:///etc/passwd", "HEADRACE_FILE_ROOTS"),
        ("//etc/passwd", "HEADRACE_FILE_ROOTS"),
        ("", "neither an absolute path nor a URI"),
    ],
)
def test_address_that_is_not_allowed_is_poison_and_says_why(store: ObjectStore, uri: str, reason: str) -> None:
    with pytest.raises(Poison, match=reason):
        read(store, uri)


def test_nothing_but_the_own_store_is_read_by_default(tmp_path: Path, root: Path) -> None:
    (root / "a.txt").write_bytes(b"content")
    store = ObjectStore(str(tmp_path / "objects"))
    with pytest.raises(Poison, match="HEADRACE_FILE_ROOTS"):
        read(store, file_uri(root / "a.txt"))


@pytest.mark.parametrize("climb", ["../outside.txt", "%2e%2e/outside.txt", "..%2Foutside.txt", "./x/../../outside.txt"])
def test_climbing_out_of_a_root_is_refused(store: ObjectStore, root: Path, climb: str) -> None:
    (root.parent / "outside.txt").write_bytes(b"secret")
    with pytest.raises(Poison, match="HEADRACE_FILE_ROOTS"):
        read(store, f"file://{root}/{climb}")


def test_directory_that_only_begins_like_a_root_is_refused(store: ObjectStore, root: Path) -> None:
    neighbour = root.with_name("root-of-another")
    neighbour.mkdir()
    (neighbour / "a.txt").write_bytes(b"secret")
    with pytest.raises(Poison, match="HEADRACE_FILE_ROOTS"):
        read(store, str(neighbour / "a.txt"))


def test_symlink_out_of_a_root_is_refused(store: ObjectStore, root: Path) -> None:
    (root.parent / "outside.txt").write_bytes(b"secret")
    (root / "link.txt").symlink_to(root.parent / "outside.txt")
    (root / "directory").symlink_to(root.parent)
    for escape in (root / "link.txt", root / "directory" / "outside.txt"):
        with pytest.raises(Poison, match="HEADRACE_FILE_ROOTS"):
            read(store, str(escape))


def test_missing_file_outside_of_the_roots_looks_like_an_existing_one(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_bytes(b"secret")
    messages = set()
    for name in ("there.txt", "gone.txt"):
        with pytest.raises(Poison) as caught:
            read(store, str(tmp_path / name))
        messages.add(str(caught.value).replace(name, ""))
    assert len(messages) == 1


def test_symlink_inside_of_a_root_is_followed(store: ObjectStore, root: Path) -> None:
    (root / "a.txt").write_bytes(b"content")
    (root / "link.txt").symlink_to("a.txt")
    assert read(store, str(root / "link.txt")) == b"content"


def test_root_that_is_a_symlink_is_a_root(tmp_path: Path, root: Path) -> None:
    (root / "a.txt").write_bytes(b"content")
    (tmp_path / "link").symlink_to(root)
    store = ObjectStore(str(tmp_path / "objects"), file_roots=(tmp_path / "link",))
    assert read(store, str(tmp_path / "link" / "a.txt")) == b"content"


def test_missing_file_is_poison(store: ObjectStore, root: Path) -> None:
    with pytest.raises(Poison, match="does not exist"):
        read(store, file_uri(root / "gone.txt"))


def test_symlink_loop_is_poison(store: ObjectStore, root: Path) -> None:
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(Poison):
        read(store, str(root / "loop"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_regular_file_is_refused_at_once(
    store: ObjectStore, root: Path, make: Callable[[Path], None]
) -> None:
    make(root / "special")
    with pytest.raises(Poison, match="not a regular file"):
        read(store, str(root / "special"))


def test_device_is_refused() -> None:
    with pytest.raises(Poison, match="not a regular file"):
        read(ObjectStore(file_roots=(Path("/dev"),)), "/dev/zero")


def test_file_without_permission_is_poison() -> None:
    # The kernel's write-only switches refuse to be read even by root.
    with pytest.raises(Poison, match="permission denied"):
        read(ObjectStore(file_roots=(Path("/proc/sys"),)), "/proc/sys/vm/compact_memory")


def test_file_of_100_mb_is_refused_with_size_and_limit(store: ObjectStore, root: Path) -> None:
    with (root / "big.bin").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(Poison, match=r"document .*big\.bin has 100000000 bytes; the limit is 50000000"):
        read(store, str(root / "big.bin"), max_bytes=50_000_000)


def test_too_large_file_is_refused_unread(store: ObjectStore, root: Path) -> None:
    with (root / "huge.bin").open("wb") as file:
        file.truncate(1 << 40)  # sparse; reading a terabyte would run into every limit of this test
    with pytest.raises(Poison, match="the limit is"):
        read(store, str(root / "huge.bin"))


def test_file_of_exactly_the_limit_is_read(store: ObjectStore, root: Path) -> None:
    (root / "a.bin").write_bytes(b"x" * 1000)
    assert len(read(store, str(root / "a.bin"), max_bytes=1000)) == 1000
    with pytest.raises(Poison, match="has 1000 bytes; the limit is 999"):
        read(store, str(root / "a.bin"), max_bytes=999)


def test_file_that_holds_more_than_its_size_says_is_tried_again(tmp_path: Path) -> None:
    # As a file does that somebody still writes to; those under /proc always do.
    store = ObjectStore(str(tmp_path), file_roots=(Path("/proc/self"),))
    with pytest.raises(Retryable, match="changed its size"):
        read(store, "/proc/self/status")


def test_empty_file_is_read_as_no_bytes(store: ObjectStore, root: Path) -> None:
    (root / "empty").touch()
    assert read(store, str(root / "empty")) == b""


def test_written_object_is_read_back_by_its_uri(store: ObjectStore) -> None:
    uri = write(store, "texts/ab/abcdef.txt", b"content")
    assert uri.startswith("file:///")
    assert read(store, uri) == b"content"


def test_base_may_be_a_file_uri(tmp_path: Path) -> None:
    store = ObjectStore(file_uri(tmp_path / "with space"))
    write(store, "a.txt", b"content")
    assert (tmp_path / "with space" / "a.txt").read_bytes() == b"content"


def test_second_write_of_a_key_replaces_the_first_and_leaves_nothing_behind(store: ObjectStore, tmp_path: Path) -> None:
    assert write(store, "texts/a.txt", b"first") == write(store, "texts/a.txt", b"second")
    assert [path.name for path in (tmp_path / "objects" / "texts").iterdir()] == ["a.txt"]
    assert (tmp_path / "objects" / "texts" / "a.txt").read_bytes() == b"second"


def test_reader_never_sees_half_an_object(store: ObjectStore) -> None:
    contents = [bytes([letter]) * 3_000_000 for letter in b"abcd"]

    async def write_and_read() -> set[bytes]:
        uri = await store.write("contended", contents[0])
        writes = [asyncio.create_task(store.write("contended", content)) for content in contents * 3]
        seen = set()
        while not all(task.done() for task in writes):
            seen.add(await store.read(uri, max_bytes=4_000_000))
        await asyncio.gather(*writes)
        return seen

    assert asyncio.run(write_and_read()) <= set(contents)


@pytest.mark.parametrize("key", ["../a", "/a", "a//b", "a/../b", ".hidden", "", "a/", "a b", "a\0", "ü"])
def test_key_that_could_leave_the_base_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        write(store, key, b"content")


def test_base_that_cannot_be_written_is_fatal_and_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fatal, match="HEADRACE_OBJECT_STORE"):
        write(ObjectStore(str(tmp_path / "file" / "objects")), "a", b"content")


def test_remote_base_is_written_and_read() -> None:
    store = ObjectStore("memory://claims/prefix")
    uri = write(store, "texts/a.txt", b"content")
    assert uri == "memory://claims/prefix/texts/a.txt"
    assert read(store, uri) == b"content"


def test_remote_base_does_not_open_its_neighbours() -> None:
    fsspec.filesystem("memory").pipe_file("memory://claims/prefix-of-another/a.txt", b"secret")
    store = ObjectStore("memory://claims/prefix")
    for uri in ("memory://claims/prefix-of-another/a.txt", "memory://claims/prefix/../prefix-of-another/a.txt"):
        with pytest.raises(Poison, match=r"may be read|refused"):
            read(store, uri)


def test_remote_object_is_limited_missing_and_empty_as_a_file_is(store: ObjectStore) -> None:
    remote = fsspec.filesystem("memory")
    remote.pipe_file("memory://documents/large", b"x" * 1001)
    remote.pipe_file("memory://documents/empty", b"")
    with pytest.raises(Poison, match="has 1001 bytes; the limit is 1000"):
        read(store, "memory://documents/large", max_bytes=1000)
    with pytest.raises(Poison, match="does not exist"):
        read(store, "memory://documents/gone")
    with pytest.raises(Poison, match="directory"):
        read(store, "memory://documents")
    assert read(store, "memory://documents/empty") == b""


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ("refused", Retryable),
        ("timeout", Retryable),
        ("plugin", Retryable),
        ("denied", Poison),
        ("missing", Poison),
    ],
)
def test_trouble_of_a_remote_store_is_classed(
    broken_store: ObjectStore, trouble: str, error: type[HeadraceError]
) -> None:
    with pytest.raises(error):
        read(broken_store, f"broken://bucket/{trouble}")


def test_password_and_signature_of_a_uri_stay_out_of_messages(broken_store: ObjectStore) -> None:
    with pytest.raises(Retryable) as caught:
        read(broken_store, "broken://key:hunter2@bucket/refused")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Poison) as refused:
        read(broken_store, "https://example.org/a.pdf?signature=hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://u:p@a.org/a.md?sig=x#y", "https://a.org/a.md"),
        ("s3://bucket/what?.md", "s3://bucket/what?.md"),
        ("abfs://container/a?sig=x", "abfs://container/a"),
        ("/srv/what?.md", "/srv/what?.md"),
    ],
)
def test_what_is_shown_of_a_uri_names_the_document_and_holds_no_secret(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


@pytest.mark.parametrize("protocol", ["nonsense", "gopher"])
def test_unknown_protocol_in_the_configuration_is_fatal(protocol: str) -> None:
    with pytest.raises(Fatal, match=protocol):
        ObjectStore(protocols=(protocol,))


def written(store: ObjectStore, key: str, *parts: bytes) -> str:
    async def write() -> str:
        async with store.writing() as writer:
            for part in parts:
                await writer.write(part)
            return await writer.finish(key)

    return asyncio.run(write())


def test_object_written_in_parts_is_read_as_a_whole(store: ObjectStore) -> None:
    uri = written(store, "uploads/acme/a.txt", b"one ", b"", b"two")
    assert read(store, uri) == b"one two"
    assert written(store, "uploads/acme/a.txt", b"three") == uri
    assert read(store, uri) == b"three"


def test_object_that_is_not_finished_leaves_nothing_behind(store: ObjectStore, tmp_path: Path) -> None:
    async def give_up() -> None:
        async with store.writing() as writer:
            await writer.write(b"half of it")
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert list((tmp_path / "objects").iterdir()) == []


def test_object_written_in_parts_to_a_remote_store_appears_when_it_is_finished() -> None:
    store = ObjectStore("memory://bucket/base")
    uri = written(store, "uploads/acme/a.txt", b"one ", b"two")
    assert uri == "memory://bucket/base/uploads/acme/a.txt"
    assert read(store, uri) == b"one two"


@pytest.mark.parametrize("key", ["../a", ".a", "a//b", ""])
def test_object_written_in_parts_stays_below_the_base(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        written(store, key, b"x")


def test_a_base_that_cannot_be_written_is_fatal_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match="HEADRACE_OBJECT_STORE"):
        written(ObjectStore(str(tmp_path / "file")), "a", b"x")


def test_objects_of_the_store_itself_are_known_however_they_are_named(store: ObjectStore, tmp_path: Path) -> None:
    uri = write(store, "claims/a", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "objects")
    for name in (uri, str(tmp_path / "root/../objects/claims/a"), f"file://{tmp_path}/link/claims/%61"):
        assert store.key_of(name) == "claims/a"
    for name in (f"file://{tmp_path}/root/a", "memory://bucket/a", "https://example.org/a", "file://elsewhere/a"):
        assert store.key_of(name) is None
    for name in ("memory://bucket/base/a/b", "MEMORY://bucket/base/a/b"):
        assert ObjectStore("memory://bucket/base").key_of(name) == "a/b"
    assert ObjectStore("memory://bucket/base").key_of("memory://bucket/basement/a") is None
