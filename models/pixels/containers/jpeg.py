"""JPEG, with what phones put around it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from models.errors import UndecodableImage
from models.pixels.containers.container import (
    BLOCKS_MAX,
    Container,
    exif_orientation,
    valid_profile,
)

SCANS_MAX = 64
"""Most scans of a progressive JPEG. Encoders write about 10.

A scan of a few bytes costs 8 ms for each component of 24 megapixels.
"""

SCANNED_SAMPLES_MAX = 4_000_000_000
"""Most samples of all scans together.

The default scans of libjpeg have 2,800 million in 200 megapixels without subsampling.
"""

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_KEPT = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDD}
"""Frame headers, Huffman, arithmetic and quantisation tables, restart interval.

Source: ITU T.81, table B.1.
"""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


def read_jpeg(encoded: bytes) -> Container:
    """Keeps frame, tables, scans, and the segments JFIF and Adobe, which tell the colour space."""
    frame: _Frame | None = None
    orientation = 1
    profile: list[bytes] = []
    pieces = [encoded[:2]]
    for marker, start, payload in _segments(encoded):
        if marker == 0xDA:
            if frame is None:
                raise UndecodableImage(
                    "JPEG has a scan before its frame header: the file is damaged"
                )
            buffered = frame.progressive or payload[0] < len(frame.samples)
            if buffered:
                _check_scans(encoded, start, frame)
            return Container(
                stream=b"".join((*pieces, encoded[start:])),
                width=frame.width,
                height=frame.height,
                orientation=orientation,
                profile=_join_profile(profile),
                pixel_bytes={1: 5, 3: 4}.get(len(frame.samples), 8),
                fixed_bytes=2 * sum(frame.samples.values()) if buffered else 0,
            )
        if marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            orientation = exif_orientation(payload)
        elif marker == 0xE2 and payload.startswith(b"ICC_PROFILE\0"):
            profile.append(payload[12:])
        elif marker in _KEPT or (
            marker in (0xE0, 0xEE) and payload.startswith((b"JFIF\0", b"Adobe"))
        ):
            pieces.append(encoded[start : start + 4 + len(payload)])
        if marker in _FRAMES:
            if frame is not None:
                raise UndecodableImage(
                    "JPEG has two frame headers, expected one: the file is damaged"
                )
            frame = _frame(marker, payload)
    raise UndecodableImage("JPEG ends before its first scan: send the complete file")


class _Frame(NamedTuple):
    """What a frame header says."""

    width: int
    height: int
    samples: dict[int, int]
    """Number of a component -> its samples, in whole blocks.

    The decoder keeps 2 bytes for each if the file has several scans.
    """
    progressive: bool


def _frame(marker: int, payload: bytes) -> _Frame:
    """Source: ITU T.81, B.2.2 and A.2.4 (components are padded to whole MCUs)."""
    height, width, components = struct.unpack_from(">HHB", payload, 1)
    factors = [(payload[at] >> 4, payload[at] & 15) for at in range(7, 7 + 3 * components, 3)]
    across, down = max((h for h, _ in factors), default=0), max((v for _, v in factors), default=0)
    if not (0 < across <= 4 and 0 < down <= 4):
        raise UndecodableImage(
            f"JPEG has {components} components sampled {across}x{down}, expected factors of 1 to 4:"
            " the file is damaged"
        )
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    samples = {payload[6 + 3 * place]: 64 * units * h * v for place, (h, v) in enumerate(factors)}
    return _Frame(width, height, samples, marker in _PROGRESSIVE)


def _segments(encoded: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(marker, offset, payload) of each segment up to the first scan.

    Bytes between segments are skipped, as libjpeg does.
    """
    at = 2
    for _ in range(BLOCKS_MAX):
        at = encoded.find(b"\xff", at)
        while at >= 0 and encoded[at + 1] in (0x00, 0x01, 0xFF):
            at = encoded.find(b"\xff", at + 1)
        if at < 0 or encoded[at + 1] == 0xD9:
            return
        marker = encoded[at + 1]
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:
            raise UndecodableImage(
                f"JPEG has marker FF{marker:02X} in its header: the file is damaged"
            )
        (length,) = struct.unpack_from(">H", encoded, at + 2)
        if length < 2 or at + 2 + length > len(encoded):
            raise UndecodableImage(
                f"JPEG segment FF{marker:02X} has length {length}, with {len(encoded) - at - 2}"
                " bytes left: send the complete file"
            )
        yield marker, at, encoded[at + 4 : at + 2 + length]
        at += 2 + length
    raise UndecodableImage(
        f"JPEG has more than {BLOCKS_MAX} segments before its first scan: save it again"
    )


def _check_scans(encoded: bytes, start: int, frame: _Frame) -> None:
    """Refuse a JPEG with many small scans: the decoder walks the whole picture for each."""
    scans, samples, blocks, at = 0, 0, 0, start
    while (found := _MARKER.search(encoded, at)) and encoded[found.start() + 1] != 0xD9:
        if encoded[found.start() + 1] == 0xDA:
            scans += 1
            named = encoded[found.end() + 3 : found.end() + 3 + 2 * encoded[found.end() + 2] : 2]
            samples += sum(frame.samples.get(component, 0) for component in named)
        blocks += 1
        if scans > SCANS_MAX or samples > SCANNED_SAMPLES_MAX or blocks > BLOCKS_MAX:
            raise UndecodableImage(
                f"JPEG of {frame.width}x{frame.height} pixels has too many scans, {scans} with"
                f" {samples} samples, expected at most {SCANS_MAX} with {SCANNED_SAMPLES_MAX}: save"
                " it again, as baseline or with its encoder's default scans"
            )
        at = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big")


def _join_profile(parts: list[bytes]) -> bytes | None:
    """The ICC profile from its APP2 payloads (sequence number, count, data), if all are there."""
    ordered, count = sorted(parts), len(parts)
    complete = [part[:2] for part in ordered] == [
        bytes((number, count)) for number in range(1, min(count, 255) + 1)
    ]
    return valid_profile(b"".join(part[2:] for part in ordered)) if complete else None
