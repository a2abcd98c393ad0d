"""The one preprocessing: encoded bytes to `uint8 [H,W,3]`, as the manifest's `PreprocessSpec` says.

Training's evaluation, the service, batch scoring and the edge runner all call `to_pixels`;
normalisation is in the graph. There are four steps: `containers` (format, size, metadata),
`decoders`, `colour` (to sRGB) and `geometry`. With `shortest_side`, full decode and no colour
profile the result equals torchvision's `Resize` and `CenterCrop` on the transposed RGB image to the
last bit.

All functions may be called from many threads at once: nothing global is changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import (
    EmptyBody,
    ImageTooLarge,
    TooManyPixels,
    UndecodableImage,
    UnsupportedFormat,
)
from models.pixels import colour, containers
from models.pixels.decoders import DAMAGE, damaged, decode_pixels
from models.pixels.geometry import REDUCED, Reduced, fit, resized_size
from models.pixels.steps import Record

if TYPE_CHECKING:  # in the edge bundle there is no pydantic; any object with these fields will do
    from models.package.manifest import ImageFormat, PreprocessSpec

DEFAULT_DCT_MARGIN = 2.0
"""`PreprocessSpec.dct_margin` of exported packages.

`benchmarks.decode` measured the top-1 accuracy of MobileNetV2 on 500 ImageNet photos, whose short
side has 365 pixels in the mean. The table has the change of accuracy in points, and in
brackets the number of photos that were decoded at a reduced scale:

| resize, crop | margin 1 | 1.5 | 2 | 3 |
|---|---|---|---|---|
| 256, 224 | 0.0 (25) | 0.0 (7) | 0.0 (3) | 0.0 (0) |
| 160, 144 | -0.6 (413) | -0.2 (42) | 0.0 (10) | 0.0 (3) |
| 128, 112 | -1.2 (450) | -0.4 (97) | -0.2 (25) | 0.0 (8) |

The smaller sizes stand for large photos, most of which are reduced. 2 is the least margin that
costs at most 0.2 points in every row. A 12-megapixel photo is then decoded at 1/4.
"""
CROP_RATIO_MIN = 3.0 / 4.0
"""Least ratio of the sides of a random crop. Source: torchvision's RandomResizedCrop."""
CROPPED_PIXELS_MAX = 1 << 26
"""A larger image is reduced before random crops, because Pillow refuses to crop it."""
_RGB_BYTES = 4
_LIMITED_BY_PILLOW: tuple[ImageFormat, ...] = ("WEBP", "GIF", "TIFF")
"""Decoders that also apply Pillow's own limit."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright. From 5 on, width and height change places."""


def to_pixels(
    encoded: bytes, spec: PreprocessSpec, *, record: Record | None = None
) -> NDArray[np.uint8]:
    """The model's input `uint8 [H,W,3]` for the image file *encoded*.

    *record* gets what was done. Raises `EmptyBody` or a subclass of `ImageError`, and nothing else,
    whatever the bytes are.
    """
    return fit(decode(encoded, spec, record=record), spec, record=record)


def decode(
    encoded: bytes,
    spec: PreprocessSpec,
    *,
    scale: bool = True,
    crop_share: float | None = None,
    record: Record | None = None,
) -> Image.Image:
    """The picture in *encoded* as an upright RGB image in sRGB, without metadata.

    With `spec.dct_margin`, a JPEG may have 1/2, 1/4 or 1/8 of its size, as far as the margin allows
    for the resize of `spec`. Such an image is for `fit` alone. Training augmentation, which crops
    first, gives *crop_share*: the least share of the area that its crops keep. Then the short side
    of every crop stays at least the margin times the longer of `spec.crop`, and images of other
    formats are reduced too. With *scale* false the image has its full size. *record* gets what was
    done.

    Raises `EmptyBody`, `UnsupportedFormat`, `ImageTooLarge`, `TooManyPixels` (these before any
    pixel is decoded) or `UndecodableImage`.
    """
    image_format = _accepted_format(encoded, spec.formats)
    container = containers.read(encoded, image_format)
    _check_size(container, image_format=image_format, spec=spec)
    orientation = container.orientation if spec.apply_exif_orientation else 1
    profile = container.profile if spec.convert_icc else None
    draft = (
        _draft_size(container, spec, turned=orientation >= 5, crop_share=crop_share)
        if image_format == "JPEG" and scale
        else None
    )
    _check_cost(
        container,
        draft,
        copied=orientation > 1 or profile is not None,
        image_format=image_format,
        spec=spec,
    )
    if record is not None:
        record.opened(image_format, len(encoded), container)
    image = decode_pixels(container, image_format, draft=draft)
    if record is not None:
        record.decoded(image)
    stored_size = image.size
    try:
        image = colour.to_srgb(image, profile=profile, background=spec.background, record=record)
    except DAMAGE as error:
        raise UndecodableImage(damaged(container, image_format, error)) from error
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    if record is not None:
        record.oriented(image, orientation)
    image.info = {}
    if crop_share is not None and scale:
        return _reduced_for_crops(image, spec, crop_share)
    if image_format == "JPEG" and stored_size != (container.width, container.height):
        image.info[REDUCED] = _reduced(container, stored_size, orientation)
    return image


def _accepted_format(encoded: bytes, formats: tuple[ImageFormat, ...]) -> ImageFormat:
    """The format of *encoded* by its content.

    Raises `EmptyBody`, `UnsupportedFormat` or `UndecodableImage`.
    """
    if not encoded:
        raise EmptyBody(f"received 0 bytes, expected an image file ({', '.join(formats)})")
    found = containers.sniff(encoded)
    for image_format in formats:
        if found == image_format:
            return image_format
    if found is None:
        raise UndecodableImage(
            f"received {len(encoded)} bytes that begin with {encoded[:8]!r}, which is not an"
            f" image; expected {', '.join(formats)}"
        )
    raise UnsupportedFormat(
        f"received a {found} file, expected {', '.join(formats)}: convert it first"
    )


def _check_size(
    container: containers.Container, *, image_format: ImageFormat, spec: PreprocessSpec
) -> None:
    """Raises `UndecodableImage`, `ImageTooLarge` or `TooManyPixels`."""
    width, height = container.width, container.height
    if width == 0 or height == 0:
        raise UndecodableImage(
            f"{image_format} header says {width}x{height} pixels: the file is damaged"
        )
    if max(width, height) > spec.max_side:
        raise ImageTooLarge(
            f"image is {width}x{height} pixels, expected sides of at most {spec.max_side}: scale it"
            " down first"
        )
    pixels_max = spec.max_pixels
    if image_format in _LIMITED_BY_PILLOW and Image.MAX_IMAGE_PIXELS is not None:
        pixels_max = min(pixels_max, Image.MAX_IMAGE_PIXELS)
    if width * height > pixels_max:
        raise TooManyPixels(
            f"image is {width}x{height} = {width * height} pixels, expected at most {pixels_max}:"
            " scale it down first"
        )


def _check_cost(
    container: containers.Container,
    draft: tuple[int, int] | None,
    *,
    copied: bool,
    image_format: ImageFormat,
    spec: PreprocessSpec,
) -> None:
    """Raise `TooManyPixels` for an image that needs too much memory.

    *copied* says that its RGB pixels are copied once, because they are turned or converted.
    """
    scale = _draft_scale(container, draft)
    pixels = -(-container.width // scale) * -(-container.height // scale)
    needed = container.fixed_bytes + pixels * (container.pixel_bytes + _RGB_BYTES * copied)
    if needed > spec.max_decode_bytes:
        raise TooManyPixels(
            f"{image_format} of {container.width}x{container.height} pixels takes {needed} bytes of"
            f" memory to decode, expected at most {spec.max_decode_bytes} (max_decode_bytes): scale"
            " it down, or save it as a baseline JPEG"
        )


def _draft_size(
    container: containers.Container, spec: PreprocessSpec, *, turned: bool, crop_share: float | None
) -> tuple[int, int] | None:
    """The least stored (width, height) of a reduced decode: the resize target times the margin.

    None: decode at full size.
    """
    if spec.dct_margin is None:
        return None
    if crop_share is not None:
        share = 1.0 / _crop_reduction((container.width, container.height), spec, crop_share)
        return max(1, math.ceil(container.width * share)), max(
            1, math.ceil(container.height * share)
        )
    size = (container.height, container.width) if turned else (container.width, container.height)
    width, height = (math.ceil(side * spec.dct_margin) for side in resized_size(size, spec))
    return (height, width) if turned else (width, height)


def _crop_reduction(size: tuple[int, int], spec: PreprocessSpec, crop_share: float) -> float:
    """How many times an image of *size* may be reduced.

    The smallest random crop must stay above the margin.
    """
    short = math.sqrt(crop_share * CROP_RATIO_MIN * size[0] * size[1])
    return max(1.0, short / ((spec.dct_margin or math.inf) * max(spec.crop)))


def _reduced_for_crops(image: Image.Image, spec: PreprocessSpec, crop_share: float) -> Image.Image:
    """*image* at 1/2, 1/4, 1/8, or smaller where Pillow could not crop it: large crops are slow."""
    room = _crop_reduction(image.size, spec, crop_share)
    scale = next(scale for scale in (8, 4, 2, 1) if room >= scale)
    scale = max(scale, math.ceil(math.sqrt(image.width * image.height / CROPPED_PIXELS_MAX)))
    return image if scale == 1 else image.reduce(scale)


def _draft_scale(container: containers.Container, draft: tuple[int, int] | None) -> int:
    """The scale that Pillow takes for *draft*."""
    if draft is None:
        return 1
    room = min(container.width // draft[0], container.height // draft[1])
    return next(scale for scale in (8, 4, 2, 1) if room >= scale or scale == 1)


def _reduced(
    container: containers.Container, stored_size: tuple[int, int], orientation: int
) -> Reduced:
    """The note for `fit`, in upright coordinates.

    libjpeg rounds sides up: at half size, 375 columns become 188, and the last is half covered.
    """
    scale = next(
        scale
        for scale in (2, 4, 8)
        if (-(-container.width // scale), -(-container.height // scale)) == stored_size
    )
    source, covered, size = (
        (container.width, container.height),
        (container.width / scale, container.height / scale),
        stored_size,
    )
    if orientation >= 5:
        source, covered, size = source[::-1], covered[::-1], size[::-1]
    left = size[0] - covered[0] if orientation in (2, 3, 6, 7) else 0.0
    top = size[1] - covered[1] if orientation in (3, 4, 7, 8) else 0.0
    return Reduced(size, source, (left, top, left + covered[0], top + covered[1]))
