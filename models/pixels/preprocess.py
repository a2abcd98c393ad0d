"""The one preprocessing: encoded bytes to `uint8 [H,W,3]`, as the manifest's `PreprocessSpec` says.

Training's evaluation, the service, batch scoring and the edge runner all call `to_pixels`;
normalisation is in the graph. Bytes pass four rooms: `models.pixels.containers` (which format, how
large, which metadata), the decoder of that one format, `models.pixels.colour` (to sRGB), and here
geometry. With `shortest_side`, full decode and no colour profile the result equals torchvision's
`Resize` and `CenterCrop` on the transposed RGB image to the last bit.

All functions may be called from many threads at once: nothing global is changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

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

if (
    TYPE_CHECKING
):  # the edge bundle runs this module without pydantic; any object with the spec's fields will do
    from models.package.manifest import ImageFormat, PreprocessSpec

DEFAULT_DCT_MARGIN = 2.0
"""What the exporter writes into manifests. Measured by `benchmarks.decode` with MobileNetV2 on 500 ImageNet photos (365 pixels on the
short side in the mean), top-1 less that of the full decode, in points; in brackets how many photos were decoded at a reduced scale:

| resize, crop | margin 1 | 1.5 | 2 | 3 |
|---|---|---|---|---|
| 256, 224 | 0.0 (25) | 0.0 (7) | 0.0 (3) | 0.0 (0) |
| 160, 144 | -0.6 (413) | -0.2 (42) | 0.0 (10) | 0.0 (3) |
| 128, 112 | -1.2 (450) | -0.4 (97) | -0.2 (25) | 0.0 (8) |

At 256 any margin would do for these photos. The smaller sizes stand in for large photos, nearly all of which are reduced: 2 is the least
margin that costs at most 0.2 points in every row. A 12-megapixel photo is then decoded at 1/4.
"""

CROP_RATIO_MIN = 3.0 / 4.0
"""Least short side of a random crop, as a share of its long side. Source: torchvision's RandomResizedCrop."""

CROPPED_PIXELS_MAX = 1 << 26
"""An image with more is reduced before random crops whatever the margin: Pillow refuses to crop much larger ones."""

WINDOWED_PIXELS_MIN = 1 << 26
"""An image that would be resized to more pixels than this is resized in the crop's window only: a strip of 1x16384 would become
256x4194304, or 4 GB. For a side of 1 that is equal to the reference, else it may differ by rounding."""

_RGB_BYTES = 4
_LIMITED_BY_PILLOW: tuple[ImageFormat, ...] = ("WEBP", "GIF", "TIFF")
"""Decoders that apply Pillow's own limit inside."""
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


class _Reduced(NamedTuple):
    """What `fit` must know of a JPEG that was decoded at a reduced scale, kept in `Image.info`."""

    size: tuple[int, int]
    """(width, height) of the reduced image; an image of another size is no longer the one that was decoded."""
    source_size: tuple[int, int]
    """(width, height) of the full image, from which all geometry follows."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) of the picture in the reduced image, whose last column and row may be covered in part only."""


_REDUCED = "loupe_reduced"


def to_pixels(encoded: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The model's input `uint8 [H,W,3]` for the image file *encoded*: `fit(decode(encoded, spec),
    spec)`.

    Raises `EmptyBody` or a subclass of `ImageError`, and nothing else, whatever the bytes are.
    """
    return fit(decode(encoded, spec), spec)


def decode(
    encoded: bytes, spec: PreprocessSpec, *, scale: bool = True, crop_share: float | None = None
) -> Image.Image:
    """The picture in *encoded* as an upright RGB image in sRGB, without metadata.

    Where `spec.dct_margin` is set, a JPEG may come at 1/2, 1/4 or 1/8 of its size, as far as the
    margin allows for the resize that `spec` prescribes; such an image is for `fit` alone. Training
    augmentation, which crops first, gives *crop_share*: the least share of the area that its crops
    keep. Then the short side of every such crop stays at least the margin times the longer of
    `spec.crop`, and images of other formats are reduced alike. With *scale* false the image has its
    full size.

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
    image = decode_pixels(container, image_format, draft=draft)
    stored_size = image.size
    try:
        image = colour.to_srgb(image, profile=profile, background=spec.background)
    except DAMAGE as error:
        raise UndecodableImage(damaged(container, image_format, error)) from error
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    image.info = {}
    if crop_share is not None and scale:
        return _reduced_for_crops(image, spec, crop_share)
    if image_format == "JPEG" and stored_size != (container.width, container.height):
        image.info[_REDUCED] = _reduced(container, stored_size, orientation)
    return image


def fit(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """*image* (RGB) resized and cropped or padded to `uint8 [H,W,3]`, where `spec.crop` is (H, W).

    The array is C-contiguous, writable, and nobody else's.

    Source: `shortest_side` follows torchvision's `Resize(size)` (long side `int(size * long /
    short)`) and `CenterCrop` (offset rounded half to even).
    """
    reduced: _Reduced | None = image.info.get(_REDUCED)
    if reduced is None or reduced.size != image.size:
        reduced = _Reduced(image.size, image.size, (0, 0, *image.size))
    resized = _resized_size(reduced.source_size, spec)
    height, width = spec.crop
    if spec.resize == "letterbox":
        fitted = Image.new("RGB", (width, height), spec.pad_colour)
        corner = ((width - resized[0]) // 2, (height - resized[1]) // 2)
        fitted.paste(
            _resize(image, resized, box=reduced.box, window=(0, 0, *resized), spec=spec), corner
        )
    else:
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        fitted = _resize(
            image,
            resized,
            box=reduced.box,
            window=(left, top, left + width, top + height),
            spec=spec,
        )
    return np.array(fitted)


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
            f"received {len(encoded)} bytes that begin with {encoded[:8]!r}, which is no image;"
            f" expected {', '.join(formats)}"
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
    """Raises `TooManyPixels` for an image that takes too much memory; *copied* says that its RGB
    pixels are copied once, turned or converted.
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
    """The least (width, height), as stored, that a reduced decode must keep: the resize target
    times the margin. None: all.
    """
    if spec.dct_margin is None:
        return None
    if crop_share is not None:
        share = 1.0 / _crop_reduction((container.width, container.height), spec, crop_share)
        return max(1, math.ceil(container.width * share)), max(
            1, math.ceil(container.height * share)
        )
    size = (container.height, container.width) if turned else (container.width, container.height)
    width, height = (math.ceil(side * spec.dct_margin) for side in _resized_size(size, spec))
    return (height, width) if turned else (width, height)


def _crop_reduction(size: tuple[int, int], spec: PreprocessSpec, crop_share: float) -> float:
    """How many times smaller an image of *size* may be, so that the smallest random crop stays
    above the margin.
    """
    short = math.sqrt(crop_share * CROP_RATIO_MIN * size[0] * size[1])
    return max(1.0, short / ((spec.dct_margin or math.inf) * max(spec.crop)))


def _reduced_for_crops(image: Image.Image, spec: PreprocessSpec, crop_share: float) -> Image.Image:
    """*image* at 1/2, 1/4 or 1/8, as a JPEG would come: crops of large images of other formats
    would take time and memory.
    """
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
) -> _Reduced:
    """The note for `fit`, in upright coordinates. libjpeg rounds sides up: of 375 columns, a
    half-size decode has 188, the last half covered.
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
    return _Reduced(size, source, (left, top, left + covered[0], top + covered[1]))


def _resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """(width, height) after the resize and before crop or border, of an image of *size* (width,
    height).
    """
    width, height = size
    crop_height, crop_width = spec.crop
    match spec.resize:
        case "shortest_side" if width <= height:
            return spec.resize_size, int(spec.resize_size * height / width)
        case "shortest_side":
            return int(spec.resize_size * width / height), spec.resize_size
        case "stretch":
            return crop_width, crop_height
        case "letterbox" if width * crop_height >= height * crop_width:
            return crop_width, max(1, round(height * crop_width / width))
        case _:
            return max(1, round(width * crop_height / height)), crop_height


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    *,
    box: tuple[float, float, float, float],
    window: tuple[int, int, int, int],
    spec: PreprocessSpec,
) -> Image.Image:
    """The *window* (left, top, right, bottom) of *box* of *image* resized to *size* (width,
    height).
    """
    resample = Image.Resampling[spec.filter.upper()]
    left, top, right, bottom = window
    if size[0] * size[1] > WINDOWED_PIXELS_MIN:
        return image.resize((right - left, bottom - top), resample, _source_of(window, size, box))
    if spec.resize == "shortest_side" and image.width > image.height:
        return _resize_wide(image, size, box=box, window=window, resample=resample)
    resized = image.resize(size, resample, box)
    return resized if window == (0, 0, *size) else resized.crop(window)


def _resize_wide(
    image: Image.Image,
    size: tuple[int, int],
    *,
    box: tuple[float, float, float, float],
    window: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """As `_resize`, in 6/7 of the time, for an image that is wider than tall and keeps its
    proportions.

    Such an image Pillow resizes along rows first, rounds to 8 bits, and then along columns (which
    order it takes for a tall one depends on its version). Doing the two apart changes no bit, and
    spares the second what lies outside the window. Rows outside can be left out only where the
    window's edges are exact in binary.
    """
    left, top, right, bottom = window
    columns = image.resize(
        (size[0], image.height), resample, (box[0], 0, box[2], image.height)
    ).crop((left, 0, right, image.height))
    if size[1].bit_count() > 1:
        return columns.resize(
            (right - left, size[1]), resample, (0, box[1], right - left, box[3])
        ).crop((0, top, right - left, bottom))
    _, first, _, last = _source_of(window, size, box)
    return columns.resize((right - left, bottom - top), resample, (0, first, right - left, last))


def _source_of(
    window: tuple[int, int, int, int], size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """The part of *box* that becomes *window* when *box* is resized to *size*."""
    column, row = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    left, top, right, bottom = window
    return (
        box[0] + left * column,
        box[1] + top * row,
        min(box[0] + right * column, box[2]),
        min(box[1] + bottom * row, box[3]),
    )
