"""Photos without their metadata: place, time, camera, owner, previews.

Golden images are in packages, and on public pages in edge bundles. Kept is what the pixels need:
the tables and scans, the EXIF orientation, and the ICC profile if the spec converts it. Files are
cut and not encoded again, so that no pixel changes and the decoder is still tested. A file that
cannot be cut with certainty becomes a lossless PNG.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from models.errors import RequestError
from models.package.manifest import PreprocessSpec
from models.pixels import containers
from models.pixels.containers.png import png_chunk
from models.pixels.preprocess import decode, to_pixels

_INFLATED_BYTES = 1 << 20
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS")
_WEBP_KEPT = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_PROFILE, _WEBP_EXIF, _WEBP_ALPHA = 0x20, 0x08, 0x10
"""Flags of VP8X. Source: RFC 9649, section 2.7."""
_JPEG_KEPT = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD} - {0xC8}
"""Frame headers, tables, scans and restart intervals. Source: ITU T.81, table B.1."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Marker of a segment: between scans there are restart markers and stuffed bytes too."""


class _CannotCut(Exception):
    """The container cannot be cut with certainty."""


def without_metadata(encoded: bytes, spec: PreprocessSpec) -> bytes | None:
    """*encoded* with nothing but its picture, for which `to_pixels` gives the same.

    None if neither cutting nor PNG gives that. A file without metadata stays as it is. Raises
    `RequestError` if *encoded* is no image that *spec* takes.
    """
    expected_HWC = to_pixels(encoded, spec)
    for attempt in (_cut, _as_png):
        try:
            cut = attempt(encoded, spec)
            if np.array_equal(to_pixels(cut, spec), expected_HWC):
                return cut
        except (_CannotCut, RequestError, struct.error, IndexError, zlib.error):
            continue
    return None


def _cut(encoded: bytes, spec: PreprocessSpec) -> bytes:
    found = containers.sniff(encoded)
    if found not in _CUTTERS:
        raise _CannotCut
    cutter = _CUTTERS[found]
    container = containers.read(encoded, next(one for one in spec.formats if one == found))
    exif = b"" if container.orientation == 1 else _exif(container.orientation)
    return cutter(encoded, exif, spec.convert_icc and container.profile is not None)


def _as_png(encoded: bytes, spec: PreprocessSpec) -> bytes:
    stream = io.BytesIO()
    decode(encoded, spec, scale=False).save(stream, "PNG")
    return stream.getvalue()


def _exif(orientation: int) -> bytes:
    """A TIFF header and a directory with nothing but the orientation."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 274, 3, 1, orientation, 0, 0)


def _cut_jpeg(encoded: bytes, exif: bytes, keep_profile: bool) -> bytes:
    """Ends at the first picture's end: phones put previews, depth maps and videos behind it."""
    head, rest = [encoded[:2]], []
    for marker, segment, scan in _jpeg_segments(encoded):
        payload = segment[4:]
        if marker == 0xE0 and payload.startswith(b"JFIF\0"):
            # Without its thumbnail, which begins at byte 12 with its size.
            head.append(_segment(marker, payload[:12] + b"\0\0"))
        elif marker == 0xEE and payload.startswith(b"Adobe"):
            rest.append(_segment(marker, payload[:12]))
        elif marker in _JPEG_KEPT or (
            keep_profile and marker == 0xE2 and payload.startswith(b"ICC_PROFILE\0")
        ):
            rest += [segment, scan if marker == 0xDA else b""]
    if exif:
        head.append(_segment(0xE1, b"Exif\0\0" + exif))
    return b"".join((*head, *rest, b"\xff\xd9"))


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(marker, segment, what follows it) of each segment up to the end of the picture."""
    found = _JPEG_MARKER.search(encoded, 2)
    while found and encoded[found.start() + 1] != 0xD9:
        start = found.start()
        end = start + 2 + int(struct.unpack_from(">H", encoded, start + 2)[0])
        found = _JPEG_MARKER.search(encoded, end)
        yield (
            encoded[start + 1],
            encoded[start:end],
            encoded[end : found.start() if found else len(encoded)],
        )


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _cut_png(encoded: bytes, exif: bytes, keep_profile: bool) -> bytes:
    """Ends with the pixels' deflate stream: editors have left older pictures behind it."""
    kept: dict[bytes, list[bytes]] = {}
    for kind, chunk in _png_chunks(encoded):
        kept.setdefault(kind, []).append(chunk)
    names = (*_PNG_KEPT[:1], *((b"iCCP",) if keep_profile else ()), *_PNG_KEPT[1:])
    head = [chunk for name in names for chunk in kept.get(name, [])[:1]]
    if exif:
        head.append(png_chunk(b"eXIf", exif))
    return b"".join(
        (encoded[:8], *head, *_png_pixels(kept.get(b"IDAT", [])), png_chunk(b"IEND", b""))
    )


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, whole chunk) of each chunk before IEND."""
    at = 8
    while encoded[at + 4 : at + 8] != b"IEND":
        length, kind = struct.unpack_from(">I4s", encoded, at)
        yield kind, encoded[at : at + 12 + length]
        at += 12 + length


def _png_pixels(chunks: list[bytes]) -> list[bytes]:
    """The IDAT *chunks* up to the end of their deflate stream."""
    pixels, inflater = [], zlib.decompressobj()
    for chunk in chunks:
        body = chunk[8:-4]
        # In pieces: the pixels are not needed, only where they end.
        inflater.decompress(body, _INFLATED_BYTES)
        while inflater.unconsumed_tail:
            inflater.decompress(inflater.unconsumed_tail, _INFLATED_BYTES)
        pixels.append(png_chunk(b"IDAT", body[: len(body) - len(inflater.unused_data)]))
        if inflater.eof:
            break
    return pixels


def _cut_webp(encoded: bytes, exif: bytes, keep_profile: bool) -> bytes:
    """Raises `_CannotCut` for an animation: a golden image has one frame."""
    kept = []
    for kind, chunk in _webp_chunks(encoded):
        if kind in (b"ANIM", b"ANMF"):
            raise _CannotCut
        if kind == b"VP8X":
            flags = (
                chunk[8] & _WEBP_ALPHA
                | (_WEBP_PROFILE if keep_profile else 0)
                | (_WEBP_EXIF if exif else 0)
            )
            kept.append(chunk[:8] + bytes((flags, 0, 0, 0)) + chunk[12:18])
        elif kind in _WEBP_KEPT or (kind == b"ICCP" and keep_profile):
            kept.append(chunk)
    if exif:
        kept.append(struct.pack("<4sI", b"EXIF", len(exif)) + exif)
    body = b"WEBP" + b"".join(kept)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _webp_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, whole chunk with its padding) of each chunk inside the RIFF."""
    at, end = 12, min(len(encoded), 8 + int(struct.unpack_from("<I", encoded, 4)[0]))
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", encoded, at)
        yield kind, encoded[at : at + 8 + length] + b"\0" * (length & 1)
        at += 8 + length + (length & 1)


_CUTTERS: dict[str, Callable[[bytes, bytes, bool], bytes]] = {
    "JPEG": _cut_jpeg,
    "PNG": _cut_png,
    "WEBP": _cut_webp,
}
