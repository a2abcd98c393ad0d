"""TIFF, of which only the first page is kept."""

from __future__ import annotations

import struct

from PIL import TiffTags

from models.errors import UndecodableImage
from models.pixels.containers.container import (
    ALPHA_BYTES,
    GREY_BYTES,
    ORIENTATION,
    Container,
    directory_number,
    directory_offsets,
    valid_orientation,
    valid_profile,
)

_KEPT = {
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    277,
    278,
    279,
    284,
    292,
    293,
    317,
    320,
    322,
    323,
    324,
    325,
    338,
    339,
    347,
    529,
    530,
    531,
    532,
}
"""Tags that pixels depend on. Source: TIFF 6.0, section 8; 347 is Technote 2's JPEGTables."""
_JPEG_TABLES = 347
"""It has a value for each byte, although Pillow's list of tags says one value."""
_TILE_PIXELS_MIN = 1024 * 1024
"""Tiles up to this are allowed in an image of any size."""
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def read_tiff(encoded: bytes) -> Container:
    """Appends a directory with only the first page's pixel tags, and points the header to it."""
    order = "<" if encoded[:2] == b"II" else ">"
    entries = _entries(encoded, order)
    at = len(encoded) + (len(encoded) & 1)
    kept = [entry for tag, entry in sorted(entries.items()) if tag in _KEPT]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + b"\0\0\0\0"
    stream = b"".join(
        (encoded[:4], struct.pack(f"{order}I", at), encoded[8:].ljust(at - 8, b"\0"), directory)
    )
    if not {256, 257} <= entries.keys():
        raise UndecodableImage("TIFF has no width or no height: the file is damaged")
    _check_tile(entries, order)
    return Container(
        stream=stream,
        width=directory_number(entries[256], order),
        height=directory_number(entries[257], order),
        orientation=valid_orientation(directory_number(entries.get(ORIENTATION), order)),
        profile=_profile(encoded, entries.get(34675), order),
        pixel_bytes=_pixel_bytes(encoded, entries, order),
    )


def _entries(encoded: bytes, order: str) -> dict[int, bytes]:
    """The 12-byte directory entries of the first page by tag.

    Those that pixels depend on are checked.
    """
    entries: dict[int, bytes] = {}
    kept_bytes = 0
    for offset in directory_offsets(encoded, order):
        tag, kind, values, data_at = struct.unpack_from(f"{order}HHII", encoded, offset)
        size = values * _TYPE_BYTES.get(kind, 0)
        if tag in _KEPT and tag not in entries:
            kept_bytes += size if size > 4 else 0
            alone = TiffTags.lookup(tag).length == 1 and tag != _JPEG_TABLES
            if (
                size == 0
                or (alone and values != 1)
                or (size > 4 and data_at + size > len(encoded))
                or kept_bytes > len(encoded)
            ):
                raise UndecodableImage(
                    f"TIFF tag {tag} has {values} values of type {kind}, which the file does not"
                    " hold: the file is damaged"
                )
        entries.setdefault(tag, encoded[offset : offset + 12])
    return entries


def _pixel_bytes(encoded: bytes, entries: dict[int, bytes], order: str) -> int:
    """Memory of a pixel in Pillow, and in a strip or tile that may be the whole picture."""
    samples = directory_number(entries.get(277), order, default=1)
    bits = _first_number(encoded, entries.get(258), order)
    alpha = 338 in entries or samples > 3
    return (ALPHA_BYTES if alpha else GREY_BYTES) + samples * -(-bits // 8)


def _first_number(encoded: bytes, entry: bytes | None, order: str) -> int:
    """The first SHORT of *entry*, which may lie elsewhere in the file; 1 where there is none."""
    _, kind, values, at = struct.unpack(f"{order}HHII", entry or bytes(12))
    if kind == 3 and values > 2:
        return int(struct.unpack_from(f"{order}H", encoded, at)[0])
    return directory_number(entry, order, default=1)


def _profile(encoded: bytes, entry: bytes | None, order: str) -> bytes | None:
    _, _, length, at = struct.unpack(f"{order}HHII", entry or bytes(12))
    complete = length > 4 and at + length <= len(encoded)
    return valid_profile(encoded[at : at + length]) if complete else None


def _check_tile(entries: dict[int, bytes], order: str) -> None:
    """Refuse a tile far larger than what it is a part of: libtiff would allocate it whole."""
    width, height, tile_width, tile_height = (
        directory_number(entries.get(tag), order) for tag in (256, 257, 322, 323)
    )
    if tile_width * tile_height > max(_TILE_PIXELS_MIN, 4 * width * height):
        raise UndecodableImage(
            f"TIFF of {width}x{height} pixels has tiles of {tile_width}x{tile_height}: the file is"
            " damaged"
        )
