"""A set of digests in some 20 bytes each, where Python's own set of bytes takes 90.

They lie one after the other in cells, 32 in each at most on average. To look for one is to search its cell, in half a
microsecond. The search does not ask where in its cell a digest begins: digests are 128 bits of a SHA-256, so that two
of them hold a third one across their border is as unlikely as that two ids have one digest.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256

DIGEST_BYTES = 16
_PER_CELL = 32  # on average; beyond that there are twice as many cells


class Digests:
    """A set to which digests are added, and from which none is taken."""

    def __init__(self, packed: bytes = b"") -> None:
        self._count = len(packed) // DIGEST_BYTES
        self._make_cells(packed)

    def _make_cells(self, packed: bytes) -> None:
        needed = -(-self._count // _PER_CELL)
        self._cells = [bytearray() for _ in range(1 << max(0, needed - 1).bit_length())]
        self._mask = len(self._cells) - 1
        for digest in unpacked(packed):
            self._cells[hash(digest) & self._mask] += digest

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: bytes) -> bool:
        return self._cells[hash(digest) & self._mask].find(digest) >= 0  # quicker than `in`

    def __iter__(self) -> Iterator[bytes]:
        return unpacked(self.packed)

    def add(self, digest: bytes) -> None:
        """Add one, unless it is in."""
        cell = self._cells[hash(digest) & self._mask]
        if cell.find(digest) >= 0:
            return
        cell += digest
        self._count += 1
        if self._count > _PER_CELL * len(self._cells):
            self._make_cells(self.packed)

    def update(self, digests: Iterable[bytes]) -> None:
        """Add each."""
        for digest in digests:
            self.add(digest)

    @property
    def packed(self) -> bytes:
        """All of them, one after the other, as the constructor takes them."""
        return b"".join(self._cells)


def unpacked(packed: bytes) -> Iterator[bytes]:
    """The digests that lie there one after the other."""
    return (packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES))


def digest_of(identity: str) -> bytes:
    """What is remembered of an id."""
    return sha256(identity.encode("utf-8", errors="surrogatepass")).digest()[:DIGEST_BYTES]
