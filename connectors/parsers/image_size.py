"""How large an image says it is, told from its header before anything is decompressed."""

import struct
from collections.abc import Callable, Iterator

from schemas.errors import Poison

_JPEG_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # the markers that begin a frame
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_SHORT, _TIFF_LONG = 3, 4
_MAX_TIFF_PAGES = 10_000  # a chain of pages may be a loop

Size = tuple[int, int]


def largest(data: bytes, media_type: str) -> Size:
    """Width and height of an image, of the largest page if it has several.

    Raises:
        Poison: no size where the format has it.
    """
    try:
        return max(_READERS[media_type](data), key=lambda size: size[0] * size[1])
    except (struct.error, IndexError, ValueError) as error:
        raise Poison("a damaged image: its header does not say how large it is") from error


def _png(data: bytes) -> Iterator[Size]:
    yield struct.unpack_from(">II", data, 16)


def _gif(data: bytes) -> Iterator[Size]:
    yield struct.unpack_from("<HH", data, 6)


def _bmp(data: bytes) -> Iterator[Size]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)  # noqa: PLR2004 - OS/2's
    yield abs(width), abs(height)  # a negative height means that the top row comes first


def _webp(data: bytes) -> Iterator[Size]:
    match data[12:16]:
        case b"VP8X":
            yield (
                1 + int.from_bytes(_exactly(data, 24, 3), "little"),
                1 + int.from_bytes(_exactly(data, 27, 3), "little"),
            )
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            yield (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            yield width & 0x3FFF, height & 0x3FFF


def _jpeg(data: bytes) -> Iterator[Size]:
    position = 2
    while position < len(data):
        if data[position] != 0xFF:  # noqa: PLR2004 - begins each marker
            raise ValueError
        marker = data[position + 1]
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            yield width, height
            return
        if marker == 0xFF:  # noqa: PLR2004 - padding
            position += 1
        elif marker in _JPEG_ALONE:
            position += 2
        else:
            position += 2 + max(2, struct.unpack_from(">H", data, position + 2)[0])


def _tiff(data: bytes) -> Iterator[Size]:
    order = "<" if data.startswith(b"II") else ">"
    (place,) = struct.unpack_from(f"{order}I", data, 4)
    for _ in range(_MAX_TIFF_PAGES):
        if not place:
            return
        (entries,) = struct.unpack_from(f"{order}H", data, place)
        size = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
        for number in range(entries):
            tag, kind, _count, value = struct.unpack_from(f"{order}HHI4s", data, place + 2 + 12 * number)
            if tag in size and kind in {_TIFF_SHORT, _TIFF_LONG}:
                size[tag] = struct.unpack_from(f"{order}H" if kind == _TIFF_SHORT else f"{order}I", value)[0]
        yield size[_TIFF_WIDTH], size[_TIFF_HEIGHT]
        (place,) = struct.unpack_from(f"{order}I", data, place + 2 + 12 * entries)
    raise ValueError


def _exactly(data: bytes, start: int, count: int) -> bytes:
    found = data[start : start + count]
    if len(found) < count:
        raise ValueError
    return found


_READERS: dict[str, Callable[[bytes], Iterator[Size]]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/bmp": _bmp,
    "image/webp": _webp,
    "image/tiff": _tiff,
}
