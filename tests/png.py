"""Makes a picture of a page small: few colours, as a palette."""

from __future__ import annotations

import collections
import collections.abc as cabc
import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def with_palette(png: bytes) -> bytes:
    """The same picture in its 256 most frequent colours, which its flat areas keep.

    :param png: as Chromium writes it: 8 bits of red, green and blue, not interlaced.
    """
    parts = dict(_chunks(png))
    width, height, *kind = struct.unpack(">IIBBBBB", parts[b"IHDR"])

    if kind != [8, 2, 0, 0, 0]:
        raise ValueError(f"It is PNG of another kind: {kind}.")

    rows = list(_unfiltered(zlib.decompress(parts[b"IDAT"]), width * 3))
    pixels = [[row[i : i + 3] for i in range(0, len(row), 3)] for row in rows]

    numbers = collections.Counter(color for row in pixels for color in row)
    palette = [color for color, _ in numbers.most_common(256)]
    index = {color: palette.index(_nearest(color, palette)) for color in numbers}
    data = b"".join(b"\0" + bytes(index[color] for color in row) for row in pixels)
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", b"".join(palette)),
            (b"IDAT", zlib.compress(data, 9)),
            (b"IEND", b""),
        )
    )


def _nearest(color: bytes, palette: list[bytes]) -> bytes:
    def distance(other: bytes) -> int:
        return sum((a - b) ** 2 for a, b in zip(color, other, strict=True))

    return min(palette, key=distance)


def _chunks(png: bytes) -> cabc.Iterator[tuple[bytes, bytes]]:
    at, image = len(_SIGNATURE), b""

    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        name, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12

        if name == b"IDAT":
            image += body
        else:
            yield name, body

    yield b"IDAT", image


def _unfiltered(data: bytes, length: int) -> cabc.Iterator[bytes]:
    """The rows without the filters of RFC 2083, section 6."""
    above = bytearray(length)

    for at in range(0, len(data), length + 1):
        kind, row = data[at], bytearray(data[at + 1 : at + 1 + length])

        for i in range(length):
            left = row[i - 3] if i >= 3 else 0
            corner = above[i - 3] if i >= 3 else 0
            guess = (0, left, above[i], (left + above[i]) // 2, 0)[kind]

            if kind == 4:
                base = left + above[i] - corner
                guess = min((left, above[i], corner), key=lambda v: abs(base - v))  # noqa: B023

            row[i] = (row[i] + guess) & 255

        yield bytes(row)
        above = row
