"""WebP."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from models.errors import UndecodableImage
from models.pixels.containers.container import (
    BLOCKS_MAX,
    Container,
    exif_orientation,
    valid_profile,
)

LOSSY_BYTES, LOSSLESS_BYTES, ALPHA_BYTES = 17, 20, 23
"""`pixel_bytes`, measured. Pillow reads WebP as an animation: two canvases of RGBA and a copy."""


def read_webp(encoded: bytes) -> Container:
    """The decoder gets the whole file: libwebp reads no metadata by default."""
    size: tuple[int, int] | None = None
    orientation, profile = 1, None
    for kind, body in _riff_chunks(encoded):
        if size is None:
            size = _webp_size(kind, body)
        elif kind == b"EXIF":
            orientation = exif_orientation(body)
        elif kind == b"ICCP":
            profile = valid_profile(body)
    if size is None:
        raise UndecodableImage("WEBP has no picture chunk: the file is damaged")
    return Container(
        stream=encoded,
        width=size[0],
        height=size[1],
        orientation=orientation,
        profile=profile,
        pixel_bytes=_pixel_bytes(encoded),
    )


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the first chunk of the file.

    Source: RFC 9649, section 2.
    """
    if kind == b"VP8X" and len(body) >= 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and body[:1] == b"\x2f":
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise UndecodableImage(
        f"WEBP begins with chunk {kind!r} of {body[:10]!r}, expected a complete VP8, VP8L or VP8X:"
        " the file is damaged"
    )


def _pixel_bytes(encoded: bytes) -> int:
    """By the first chunk: VP8X says whether there is alpha, and VP8L may have it."""
    if encoded[12:16] == b"VP8 ":
        return LOSSY_BYTES
    if encoded[12:16] == b"VP8X" and not encoded[20] & 0x10:
        return LOSSLESS_BYTES
    return ALPHA_BYTES


def _riff_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, body) of each chunk that is complete; of the frames only as much as their header."""
    at = 12
    for _ in range(BLOCKS_MAX):
        if at + 8 > len(encoded):
            return
        kind, length = struct.unpack_from("<4sI", encoded, at)
        yield (
            kind,
            encoded[at + 8 : at + 8 + (length if kind in (b"EXIF", b"ICCP") else min(length, 32))],
        )
        at += 8 + length + (length & 1)
    raise UndecodableImage(f"WEBP has more than {BLOCKS_MAX} chunks: save it again")
