"""PNG and APNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from models.errors import UndecodableImage
from models.pixels.containers.container import (
    ALPHA_BYTES,
    BLOCKS_MAX,
    GREY_BYTES,
    PROFILE_BYTES_MAX,
    Container,
    exif_orientation,
    valid_profile,
)

_CRITICAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
"""Chunks that pixels depend on. They must match their checksums; damaged others are skipped."""


def read_png(encoded: bytes) -> Container:
    """Keeps IHDR, PLTE, tRNS and IDAT. Of an animation that is the picture of a still viewer."""
    chunks: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    for kind, body, intact in _chunks(encoded):
        if (kind == b"IHDR") == bool(chunks):
            raise UndecodableImage(
                f"PNG has chunk {kind!r} where exactly one IHDR must come first: the file is"
                " damaged"
            )
        if kind in _CRITICAL and not intact:
            raise UndecodableImage(
                f"PNG chunk {kind.decode()} does not match its checksum: the file is damaged"
            )
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in _CRITICAL or (kind in (b"eXIf", b"iCCP") and intact):
            chunks.setdefault(kind, bytes(body))
    if not pixels:
        raise UndecodableImage("PNG ends before its pixels: send the complete file")
    width, height, depth, colour_type = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    pixel_bytes = 4 if colour_type == 2 else GREY_BYTES
    if colour_type & 4 or b"tRNS" in chunks:
        pixel_bytes = ALPHA_BYTES
    if b"tRNS" in chunks:
        chunks[b"tRNS"] = _transparency(chunks[b"tRNS"], depth=depth, colour_type=colour_type)
    stream = [
        encoded[:8],
        *(png_chunk(kind, chunks[kind]) for kind in _CRITICAL if kind in chunks),
        png_chunk(b"IDAT", b"".join(pixels)),
        png_chunk(b"IEND", b""),
    ]
    return Container(
        stream=b"".join(stream),
        width=width,
        height=height,
        orientation=exif_orientation(chunks.get(b"eXIf", b"")),
        profile=_inflate_profile(chunks.get(b"iCCP", b"")),
        pixel_bytes=pixel_bytes,
    )


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """(type, body, checksum is right) of each chunk before IEND."""
    view, at = memoryview(encoded), 8
    for _ in range(BLOCKS_MAX):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        (checksum,) = struct.unpack_from(">I", encoded, at + 8 + length)
        if kind == b"IEND":
            return
        yield (
            kind,
            view[at + 8 : at + 8 + length],
            zlib.crc32(view[at + 4 : at + 8 + length]) == checksum,
        )
        at += 12 + length
    raise UndecodableImage(f"PNG has more than {BLOCKS_MAX} chunks: save it again")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A whole chunk with its length and checksum."""
    checksum = struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
    return b"".join((struct.pack(">I", len(body)), kind, body, checksum))


def _transparency(body: bytes, *, depth: int, colour_type: int) -> bytes:
    """The transparent colour of grey and RGB in the depth of the pixels that Pillow hands out.

    Pillow compares the file's value with pixels that it has brought to 8 bits. A transparent colour
    of 16-bit RGB is matched by its high bytes; 16-bit grey stays 16 bits in Pillow.
    """
    if colour_type == 0 and depth in (2, 4):
        (grey,) = struct.unpack_from(">H", body)
        return struct.pack(">H", grey % 2**depth * 255 // (2**depth - 1))
    if colour_type == 2 and depth == 16:
        return struct.pack(">HHH", *(value >> 8 for value in struct.unpack_from(">HHH", body)))
    return body


def _inflate_profile(body: bytes) -> bytes | None:
    """The ICC profile in an iCCP chunk (name, 0, method 0, deflated profile), or None."""
    try:
        profile = zlib.decompressobj().decompress(
            body.partition(b"\0")[2][1:], PROFILE_BYTES_MAX + 1
        )
    except zlib.error:
        return None
    return valid_profile(profile)
