"""Pillow's decoder for each format, and the errors of damaged files.

The input is what `models.pixels.containers` keeps of a file.
"""

from __future__ import annotations

import ctypes
import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from models.errors import UndecodableImage, UnsupportedFormat
from models.pixels import containers

if TYPE_CHECKING:  # the edge bundle runs this module without pydantic
    from models.package.manifest import ImageFormat

# Pillow's classes are used by name, not through Image.open. So no other parser is reached, and
# Pillow's own limit, which warns through the process-wide warnings module, does not apply.
_DECODERS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
# There is one decoding thread for each core. A decoder's own threads would need more memory, and no
# less time.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
_SIZED_BY_DECODER: tuple[ImageFormat, ...] = ("AVIF", "HEIC")
"""Their readers find the largest size that an image may have; the picture may be smaller."""
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,  # only where Pillow finds another size in the header than we did
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # libheif's
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What decoders raise for damaged files.

MemoryError is among them: the cost was checked before, so that the file is damaged.
"""


def _silence_libtiff() -> None:
    """Stop libtiff from writing errors to stderr: thousands of lines for one damaged file.

    Pillow raises exceptions for these errors too, but has no option to switch the lines off. On
    Linux the library is found by name; elsewhere the lines stay.
    """
    maps = Path("/proc/self/maps")
    lines = (
        maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.is_file() else []
    )
    for library in {line.split(maxsplit=5)[5] for line in lines if "/libtiff" in line}:
        ctypes.CDLL(library).TIFFSetErrorHandler(None)


_silence_libtiff()


def _decoder(image_format: ImageFormat) -> type[ImageFile.ImageFile]:
    """Raises `UnsupportedFormat` for a format whose library is not installed."""
    if image_format == "HEIC":
        return _heic_decoder()
    if image_format == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise UnsupportedFormat(
            "received an AVIF file, which this build of Pillow cannot read: install Pillow's own"
            " wheel, or convert the file"
        )
    return _DECODERS[image_format]


@cache
def _heic_decoder() -> type[ImageFile.ImageFile]:
    try:
        from pillow_heif import options
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise UnsupportedFormat(
            "received a HEIC file, which needs one more package: pip install 'loupe-vision[heif]'"
        ) from error
    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    decoder: type[ImageFile.ImageFile] = HeifImageFile
    return decoder


def decode_pixels(
    container: containers.Container, image_format: ImageFormat, *, draft: tuple[int, int] | None
) -> Image.Image:
    """The pixels as stored: any mode, not upright.

    With *draft*, at the smallest scale that is at least that (width, height).
    """
    try:
        image = _decoder(image_format)(io.BytesIO(container.stream))
        wrong = image.size != (container.width, container.height)
        if image_format in _SIZED_BY_DECODER:
            wrong = image.width * image.height > container.width * container.height
        if wrong:
            raise UndecodableImage(
                f"{image_format} header says {container.width}x{container.height} pixels, its frame"
                f" {image.width}x{image.height}"
            )
        if draft is not None:
            image.draft(None, draft)
        image.decodermaxblock = len(
            container.stream
        )  # the whole file in one piece: handing out 64 KiB at a time copies the rest each time
        image.load()
    except DAMAGE as error:
        raise UndecodableImage(damaged(container, image_format, error)) from error
    return image


def damaged(
    container: containers.Container, image_format: ImageFormat, error: BaseException
) -> str:
    """The message of `UndecodableImage` for what a decoder raised."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{image_format} of {container.width}x{container.height} pixels is damaged or cut short"
        f" ({reason}): send the complete file"
    )
