"""HEIC and AVIF: pictures in the boxes of ISO media files."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from models.errors import UndecodableImage
from models.pixels.containers.av1 import frame_pixels
from models.pixels.containers.container import BLOCKS_MAX, Container, valid_profile

_ALPHA_MORE = 9
"""Bytes for each pixel of an alpha channel: RGB 4, alpha 1, result 4."""
_AVIF_BYTES, _AVIF_DEEP_BYTES, _HEIC_BYTES = 12, 18, 10
"""`Container.pixel_bytes`, measured; the second is of more than 8 bits a sample."""
_ORIENTATIONS = {
    (0, None): 1,
    (0, 0): 4,
    (0, 1): 2,
    (1, None): 8,
    (1, 0): 5,
    (1, 1): 7,
    (2, None): 3,
    (2, 0): 2,
    (2, 1): 4,
    (3, None): 6,
    (3, 0): 7,
    (3, 1): 5,
}
"""Quarter turns to the left (`irot`), axis of the mirroring after that (`imir`) -> orientation."""
_COLOUR_PROFILES = (b"prof", b"rICC")

Box = tuple[bytes, bytes]
"""Type and body."""


class _Picture(NamedTuple):
    """The properties of the primary item, and of all items."""

    meta: dict[bytes, bytes]
    """Body of each box of the file's `meta` box."""
    primary: Sequence[Box]
    every: Sequence[Box]


def read_heic(encoded: bytes) -> Container:
    """The decoder turns the picture, and refuses items larger than their header says."""
    picture = _picture(encoded)
    width, height = _size(picture)
    turned = _property(picture.primary, b"irot")[:1] in (b"\1", b"\3")
    pixel_bytes = _HEIC_BYTES + _ALPHA_MORE * _has_alpha(picture)
    return Container(
        stream=encoded,
        width=height if turned else width,
        height=width if turned else height,
        profile=_profile(picture.primary),
        pixel_bytes=pixel_bytes,
        fixed_bytes=max(0, _largest_pixels(picture) - width * height) * pixel_bytes,
    )


def read_avif(encoded: bytes) -> Container:
    """Takes the still picture of a sequence.

    Frames larger than the header says are counted, because the decoder would decode them.
    """
    picture = _picture(encoded)
    width, height = _size(picture)
    largest = max(_largest_pixels(picture), *map(frame_pixels, _items(encoded, picture.meta)), 0)
    angle, mirror = _property(picture.primary, b"irot"), _property(picture.primary, b"imir")
    deep = any(kind == b"pixi" and max(body[5:], default=8) > 8 for kind, body in picture.every)
    pixel_bytes = (_AVIF_DEEP_BYTES if deep else _AVIF_BYTES) + _ALPHA_MORE * _has_alpha(picture)
    return Container(
        stream=b"".join((encoded[:8], b"avif", encoded[12:])),
        width=width,
        height=height,
        orientation=_ORIENTATIONS[angle[0] & 3 if angle else 0, mirror[0] & 1 if mirror else None],
        profile=_profile(picture.primary),
        pixel_bytes=pixel_bytes,
        fixed_bytes=max(0, largest - width * height) * pixel_bytes,
    )


def _picture(encoded: bytes) -> _Picture:
    """Source: ISO/IEC 23008-12, sections 6 and 9; ISO/IEC 14496-12, section 8.11."""
    meta = _first(_boxes(encoded), b"meta")[4:]
    described = dict(reversed([*_boxes(meta)]))
    if b"pitm" not in described or b"iprp" not in described:
        raise UndecodableImage("HEIF file has no primary picture: the file is damaged, or a film")
    properties = [*_boxes(_first(_boxes(described[b"iprp"]), b"ipco"))]
    (item,) = struct.unpack_from(">I" if described[b"pitm"][0] else ">H", described[b"pitm"], 4)
    found = [
        index
        for kind, body in _boxes(described[b"iprp"])
        if kind == b"ipma"
        for index in _associated(body, item)
    ]
    return _Picture(described, [properties[index - 1] for index in found if index > 0], properties)


def _items(encoded: bytes, meta: dict[bytes, bytes]) -> Iterator[bytes]:
    """The data of each `av01` item. Source: ISO/IEC 14496-12, sections 8.11.3 and 8.11.6."""
    coded = {item for item, kind in _item_types(meta.get(b"iinf", b"")) if kind == b"av01"}
    body = meta.get(b"iloc", b"")
    version, sizes = struct.unpack_from(">B3xH", body)
    offset_bytes, length_bytes, base_bytes, index_bytes = (
        sizes >> 12,
        sizes >> 8 & 15,
        sizes >> 4 & 15,
        sizes & 15 if version else 0,
    )
    at = 6
    wide = 4 if version == 2 else 2
    room = len(encoded)

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(body):
            raise IndexError(at)
        return int.from_bytes(body[at - size : at], "big")

    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # data_reference_index
        base, extents = number(base_bytes), []
        for _ in range(number(2)):
            number(index_bytes)
            start, length = base + number(offset_bytes), number(length_bytes)
            if item not in coded:
                continue
            source = meta.get(b"idat", b"") if method == 1 else encoded
            extents.append(source[start : start + length] if length else source[start:])
            room -= len(extents[-1])
            if room < 0:
                raise UndecodableImage(
                    "AVIF pictures have more bytes than the file: the file is damaged"
                )
        yield b"".join(extents)


def _item_types(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and type of each item, from an `iinf` box."""
    for kind, entry in _boxes(body[6 if body[0] == 0 else 8 :]):
        if kind == b"infe" and entry[0] >= 2:
            wide = entry[0] > 2
            (item,) = struct.unpack_from(">I" if wide else ">H", entry, 4)
            yield item, entry[10:14] if wide else entry[8:12]


def _boxes(body: bytes) -> Iterator[Box]:
    """Each box in *body*, in order; the last one may be cut short."""
    at = 0
    for _ in range(BLOCKS_MAX):
        if at + 8 > len(body):
            return
        size, kind = struct.unpack_from(">I4s", body, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", body, at + 8)
            head = 16
        end = at + size if size else len(body)
        if size and size < head:
            raise UndecodableImage(
                f"HEIF box {kind!r} says that it has {size} bytes: the file is damaged"
            )
        # Pixels, most of a file, are not copied.
        yield kind, b"" if kind == b"mdat" else body[at + head : end]
        at = end
    raise UndecodableImage(f"HEIF file has more than {BLOCKS_MAX} boxes: save it again")


def _first(boxes: Iterator[Box], kind: bytes) -> bytes:
    for found, body in boxes:
        if found == kind:
            return body
    raise UndecodableImage(f"HEIF file has no box {kind.decode()}: the file is damaged, or a film")


def _associated(body: bytes, item: int) -> Iterator[int]:
    """Numbers from 1 of the properties of *item*, from an `ipma` box."""
    version, flags, count = struct.unpack_from(">B2xBI", body)
    layout, at = (">I" if version else ">H"), 8
    for _ in range(min(count, BLOCKS_MAX)):
        (found,) = struct.unpack_from(layout, body, at)
        at += struct.calcsize(layout)
        indices, at = body[at], at + 1
        step = 2 if flags & 1 else 1
        if found == item:
            for place in range(at, at + indices * step, step):
                yield (
                    struct.unpack_from(">H", body, place)[0] & 0x7FFF
                    if step == 2
                    else body[place] & 0x7F
                )
        at += indices * step


def _property(properties: Sequence[Box], kind: bytes) -> bytes:
    return next((body for found, body in properties if found == kind), b"")


def _size(picture: _Picture) -> tuple[int, int]:
    """Width and height as stored, without turns."""
    width, height = struct.unpack_from(">II", _property(picture.primary, b"ispe"), 4)
    return width, height


def _largest_pixels(picture: _Picture) -> int:
    """Pixels of the largest item. The primary one may consist of any of them."""
    return max(
        int(math.prod(struct.unpack_from(">II", body, 4)))
        for kind, body in picture.every
        if kind == b"ispe"
    )


def _has_alpha(picture: _Picture) -> bool:
    return any(
        kind == b"auxC" and (b"alpha" in body or b"auxid:1" in body) for kind, body in picture.every
    )


def _profile(properties: Sequence[Box]) -> bytes | None:
    profiles = (
        valid_profile(body[4:])
        for kind, body in properties
        if kind == b"colr" and body[:4] in _COLOUR_PROFILES
    )
    return next(filter(None, profiles), None)
