"""`Container`, and what several image formats have in common: limits on parsing, EXIF."""

from __future__ import annotations

import struct
from dataclasses import dataclass

BLOCKS_MAX = 100_000
"""Segments, chunks or sub-blocks walked in one file. A 100 MB PNG in libpng's 8 KiB chunks has 12,800."""
GREY_BYTES = 8
"""`pixel_bytes` of grey and palette images, which become RGB: 1 or 2 bytes, their copies, 4 bytes of RGB."""
ALPHA_BYTES = 15
"""`pixel_bytes` of images with transparency: index 1, RGBA 4, RGB 4, alpha 1, result 4, and change."""
PROFILE_BYTES_MAX = 4 << 20
"""An ICC profile with more bytes is ignored. Press profiles have up to 3 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One image file, opened but not decoded."""

    stream: bytes
    """The file without its metadata, for the decoder."""
    width: int
    """Of the pixels as stored, before orientation."""
    height: int
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 where the file has none or a damaged one."""
    profile: bytes | None = None
    """ICC profile, at most `PROFILE_BYTES_MAX` bytes; None where the file has none or a damaged one."""
    pixel_bytes: int = 4
    """Most memory for each decoded pixel until it is RGB. Pillow keeps an RGB pixel in 4 bytes."""
    fixed_bytes: int = 0
    """Memory that the decoder takes at any scale, such as the coefficients of a progressive JPEG."""


def exif_orientation(exif: bytes) -> int:
    """EXIF orientation, 1 to 8, from a TIFF header and its first directory; 1 where anything is
    amiss.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for offset in range(at + 2, at + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", exif, offset)[0] == 274:
                orientation = directory_number(exif[offset : offset + 12], order)
                return orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        return 1
    return 1


def directory_number(entry: bytes, order: str) -> int:
    """The first value of an entry, where it is a BYTE, SHORT or LONG; else 0."""
    (kind,) = struct.unpack_from(f"{order}H", entry, 2)
    layout = {1: "B", 3: "H", 4: "I"}.get(kind)
    return int(struct.unpack_from(order + layout, entry, 8)[0]) if layout else 0
