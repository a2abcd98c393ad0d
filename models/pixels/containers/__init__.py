"""Image headers: format, size, orientation, profile and cost, without decoding a pixel.

Pillow gets `Container.stream`, the file without its metadata. So only the short parsers here read
EXIF, ICC or text chunks, and Pillow cannot warn about them (filtering warnings is not thread-safe).
A phone's multi-picture JPEG is a plain JPEG, and limits are checked before Pillow reads anything.

Damage in metadata is ignored, as browsers do. Damage in what pixels depend on raises
`UndecodableImage`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from models.errors import UndecodableImage
from models.pixels.containers.bmp import read_bmp
from models.pixels.containers.container import Container
from models.pixels.containers.gif import read_gif
from models.pixels.containers.heif import read_avif, read_heic
from models.pixels.containers.jpeg import read_jpeg
from models.pixels.containers.png import read_png
from models.pixels.containers.tiff import read_tiff
from models.pixels.containers.webp import read_webp

if TYPE_CHECKING:  # the edge bundle reads images without pydantic
    from models.package.manifest import ImageFormat

__all__ = ["Container", "read", "sniff"]

_HEIF_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"
)
"""Brands of the file type box. Files of a general brand (`mif1`) list these as compatible."""
_BRANDS_MAX = 64
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "ICO"),
)


def sniff(encoded: bytes) -> str | None:
    """The name of the image format that the content shows, or None.

    Wider than what Loupe accepts, so that a refusal can name it.
    """
    for signature, name in _SIGNATURES:
        if encoded.startswith(signature):
            return name
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WEBP"
    if encoded[:2] == b"BM" and encoded[14:18] in (
        struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)
    ):
        return "BMP"
    if encoded[4:8] == b"ftyp":
        end = min(int.from_bytes(encoded[:4], "big"), len(encoded), 16 + 4 * _BRANDS_MAX)
        brands = [encoded[8:12], *(encoded[at : at + 4] for at in range(16, end, 4))]
        return next(
            (_HEIF_BRANDS[brand] for brand in brands if brand in _HEIF_BRANDS),
            "HEIF" if brands[0] in (b"mif1", b"msf1") else None,
        )
    start = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return (
        "SVG"
        if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!")) and b"<svg" in start)
        else None
    )


def read(encoded: bytes, image_format: ImageFormat) -> Container:
    """The container *encoded*, which `sniff` has found to be *image_format*.

    Raises `UndecodableImage`.
    """
    try:
        return _READERS[image_format](encoded)
    except (struct.error, IndexError) as error:
        raise UndecodableImage(
            f"{image_format} of {len(encoded)} bytes ends in the middle of a structure: send the"
            " complete file"
        ) from error


_READERS: dict[ImageFormat, Callable[[bytes], Container]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "GIF": read_gif,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "AVIF": read_avif,
    "HEIC": read_heic,
}
