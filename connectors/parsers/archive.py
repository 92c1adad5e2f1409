"""Zip containers, read within limits that hold whatever their headers say.

What is decompressed is counted as it comes out. Members are never opened as archives in their turn, so that nested
archives cost no more than the outermost one.
"""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from connectors.parsers.limits import Limits
from schemas.errors import Poison

_ENTRY = b"PK\x01\x02"  # begins each entry of the central directory
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # the ones that OPC, EPUB and ODF allow
_RATIO_FROM_BYTES = 8_000_000  # below, a high ratio costs nothing; small parts of blank XML exceed any


class Archive:
    """A zip container in memory; reading counts against its limits."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        """Read the list of members.

        Raises:
            Poison: damaged, too many members, or members that share their bytes.
        """
        # Before zipfile builds an object for each; the count in the header may say anything.
        entries = data.count(_ENTRY)
        if entries > limits.max_members:
            raise Poison(f"a zip container of {entries} members; the limit is {limits.max_members}")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, EOFError) as error:
            raise Poison(f"a damaged zip container: {error}") from error
        self._limits = limits
        self._unpacked_bytes = 0
        self._times = Counter(info.filename for info in self._zip.infolist())
        self._refuse_overlaps(len(data))

    def __contains__(self, name: str) -> bool:
        return name in self._times

    @contextmanager
    def open(self, name: str) -> Iterator["Member"]:
        """A member's content as a stream; its checksum is checked when it has been read to its end.

        Raises:
            Poison: missing, twice there, encrypted, damaged, or beyond a limit, on opening or while it is read.
        """
        if self._times[name] != 1:
            how = "has no member" if name not in self._times else f"has {self._times[name]} members named"
            raise Poison(f"a damaged zip container: it {how} {name}")
        info = self._zip.getinfo(name)
        if info.flag_bits & _ENCRYPTED:
            raise Poison(f"an encrypted zip container ({name}); upload it without its password")
        if info.compress_type not in _METHODS:
            raise Poison(
                f"{name} is packed by method {info.compress_type}; only 0 (stored) and 8 (deflate) can be read"
            )
        with _damage(name):
            content = self._zip.open(info)
        with content:
            yield Member(self, name, info.compress_size, content)

    def count(self, name: str, packed_bytes: int, member_bytes: int, more_bytes: int) -> None:
        """Note what has come out of a member; Poison beyond a limit."""
        limits = self._limits
        self._unpacked_bytes += more_bytes
        if member_bytes > limits.max_member_bytes:
            raise Poison(f"{name} unpacks to more than {limits.max_member_bytes} bytes; split the document")
        if self._unpacked_bytes > limits.max_unpacked_bytes:
            raise Poison(f"a zip container that unpacks to more than {limits.max_unpacked_bytes} bytes; split it")
        if member_bytes > _RATIO_FROM_BYTES and member_bytes > limits.max_ratio * packed_bytes:
            raise Poison(f"{name} unpacks to more than {limits.max_ratio} times its size: a zip bomb?")

    def _refuse_overlaps(self, data_bytes: int) -> None:
        """Members that share bytes, or have more than there are, make little look like much; no program writes such."""
        end, before = 0, ""
        for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
            if info.header_offset < end:
                raise Poison(f"a damaged zip container: {before} and {info.filename} overlap")
            end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
            before = info.filename
        if end > data_bytes:
            raise Poison(f"a damaged zip container: {before} goes on beyond its end")


class Member(io.RawIOBase):
    """The content of one member, counted as it is read."""

    def __init__(self, archive: Archive, name: str, packed_bytes: int, content: IO[bytes]) -> None:
        super().__init__()
        self._archive = archive
        self._name = name
        self._packed_bytes = packed_bytes
        self._content = content
        self._read_bytes = 0

    def read(self, size: int = 1 << 16) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        with _damage(self._name):
            data = self._content.read(min(size, 1 << 16) if size > 0 else 1 << 16)
        self._read_bytes += len(data)
        self._archive.count(self._name, self._packed_bytes, self._read_bytes, len(data))
        return data


@contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OverflowError) as error:
        raise Poison(f"a damaged zip container: {name}: {error}") from error
