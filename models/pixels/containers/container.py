"""`Container`, and what the image formats share: limits on parsing, EXIF, ICC profiles."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass

BLOCKS_MAX = 100_000
"""Most segments, chunks or sub-blocks read in one file. A PNG of 100 MB has about 12,800."""
GREY_BYTES = 8
"""`pixel_bytes` of grey and palette images: 1 or 2 bytes, their copies, and 4 bytes of RGB."""
ALPHA_BYTES = 15
"""`pixel_bytes` with transparency: index 1, RGBA 4, RGB 4, alpha 1, result 4, rounded up."""
ORIENTATION = 274
"""EXIF's tag."""
PROFILE_BYTES_MAX = 4 << 20
"""A larger ICC profile is ignored. Profiles for printing have up to 3 MB."""


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
    """ICC profile; None where the file has none, or a damaged or too large one."""
    pixel_bytes: int = 4
    """Largest memory for a decoded pixel until it is RGB, which is 4 bytes in Pillow."""
    fixed_bytes: int = 0
    """Memory of the decoder at any scale, such as the coefficients of a progressive JPEG."""


def exif_orientation(exif: bytes) -> int:
    """EXIF orientation, 1 to 8, from a TIFF header and its directory; 1 if there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    with suppress(struct.error):
        for offset in directory_offsets(exif, order) if order else ():
            if struct.unpack_from(f"{order}H", exif, offset)[0] == ORIENTATION:
                return valid_orientation(directory_number(exif[offset : offset + 12], str(order)))
    return 1


def valid_orientation(found: int) -> int:
    """*found*, or 1 if it is no EXIF orientation."""
    return found if 1 <= found <= 8 else 1


def valid_profile(found: bytes) -> bytes | None:
    """*found*, or None if it is empty or too large to be an ICC profile."""
    return found if 0 < len(found) <= PROFILE_BYTES_MAX else None


def directory_offsets(tiff: bytes, order: str) -> range:
    """Where each entry of the first directory of *tiff* begins."""
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    return range(at + 2, at + 2 + 12 * count, 12)


def directory_number(entry: bytes | None, order: str, *, default: int = 0) -> int:
    """The first value of a BYTE, SHORT or LONG entry, 0 of others; *default* without entry."""
    if entry is None:
        return default
    (kind,) = struct.unpack_from(f"{order}H", entry, 2)
    layout = {1: "B", 3: "H", 4: "I"}.get(kind)
    return int(struct.unpack_from(order + layout, entry, 8)[0]) if layout else 0
