"""The page's preprocessing gives the pixels of models/pixels/preprocess.py.

It does so if the browser decodes as Pillow does.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels

CALL = """async ([encoded, spec]) => {
  const { toPixels, PhotoError } = await import('./preprocess.js');
  try {
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    const pixels = await toPixels(bytes, spec);
    let text = '';
    for (let at = 0; at < pixels.length; at += 8192)
        text += String.fromCharCode(...pixels.subarray(at, at + 8192));
    return btoa(text);
  } catch (error) {
    if (error instanceof PhotoError) return { error: error.message };
    throw error;
  }
}"""


def in_browser(page, encoded: bytes, spec: PreprocessSpec):
    """The page's pixels `uint8 [H,W,3]`, or the text of its PhotoError."""
    found = page.evaluate(CALL, [base64.b64encode(encoded).decode(), spec.model_dump(mode="json")])
    return (
        found["error"]
        if isinstance(found, dict)
        else np.frombuffer(base64.b64decode(found), np.uint8).reshape(*spec.crop, 3)
    )


def difference(page, encoded: bytes, spec: PreprocessSpec) -> np.ndarray:
    """How far the page's pixels are from Python's, in levels."""
    found = in_browser(page, encoded, spec)
    assert not isinstance(found, str), found
    return np.abs(found.astype(np.int16) - to_pixels(encoded, spec))


def encode(
    width: int,
    height: int,
    image_format: str = "PNG",
    *,
    mode: str = "RGB",
    orientation: int | None = None,
    smooth: bool = False,
    **options,
):
    """A file of noise, or with *smooth* of large areas of colour as in photos."""
    rng = np.random.default_rng(width * 10_000 + height)
    bands = len(Image.new(mode, (1, 1)).getbands())
    small = (height // 16 + 2, width // 16 + 2) if smooth else (height, width)
    pixels = rng.integers(0, 256, (*small, bands), dtype=np.uint8)
    image = Image.merge(
        mode,
        [
            Image.fromarray(pixels[..., band]).resize((width, height), Image.Resampling.BICUBIC)
            for band in range(bands)
        ],
    )
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (256, 256),
        (500, 375),
        (375, 500),
        (259, 256),  # (side - crop) mod 4 == 3: the crop's corner is rounded half to even
        (256, 263),
        (301, 997),
        (640, 200),
        (120, 90),  # enlarged
        (31, 400),
        (7, 3),
        (1, 1),
    ],
)
def test_resize_and_crop_give_the_same_pixels(scripts, width, height):
    assert difference(scripts, encode(width, height), PreprocessSpec()).max() == 0


@pytest.mark.parametrize(("width", "height"), [(300, 900), (61, 2000)])
def test_a_picture_far_taller_than_its_target_is_resized_in_pillows_order(scripts, width, height):
    """Pillow 13 then takes the columns first and rounds in between."""
    assert (
        difference(
            scripts, encode(width, height), PreprocessSpec(resize="stretch", crop=(64, 60))
        ).max()
        == 0
    )


@pytest.mark.parametrize(
    "resize_filter", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
@pytest.mark.parametrize(("width", "height"), [(317, 229), (100, 140)])
def test_every_filter_gives_the_same_pixels(scripts, resize_filter, width, height):
    spec = PreprocessSpec(filter=resize_filter, resize_size=150, crop=(128, 130))
    assert difference(scripts, encode(width, height), spec).max() == 0


@pytest.mark.parametrize("resize", ["shortest_side", "stretch", "letterbox"])
@pytest.mark.parametrize(("width", "height"), [(301, 200), (200, 301), (40, 1000)])
def test_every_way_to_resize_gives_the_same_pixels(scripts, resize, width, height):
    spec = PreprocessSpec(resize=resize, resize_size=100, crop=(96, 81), pad_colour=(10, 20, 30))
    assert difference(scripts, encode(width, height), spec).max() == 0


def test_stretching_before_the_crop_gives_the_same_pixels(scripts):
    spec = PreprocessSpec(resize="stretch", stretch_size=100, resize_size=96, crop=(96, 81))
    assert difference(scripts, encode(301, 200), spec).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "options"),
    [("JPEG", {"quality": 90}), ("PNG", {}), ("WEBP", {"lossless": True})],
)
def test_exif_orientation_is_followed_in_every_format(scripts, image_format, options, orientation):
    encoded = encode(150, 101, image_format, orientation=orientation, **options)
    assert difference(scripts, encoded, PreprocessSpec(resize_size=64, crop=(64, 64))).max() == 0


def test_exif_orientation_is_not_followed_where_the_spec_says_so(scripts):
    encoded = encode(150, 101, "JPEG", orientation=6)
    assert (
        difference(
            scripts,
            encoded,
            PreprocessSpec(resize_size=64, crop=(64, 64), apply_exif_orientation=False),
        ).max()
        == 0
    )


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"quality": 30},
    ],
)
def test_jpeg_of_every_kind_gives_the_same_pixels(scripts, options):
    """Browser and Pillow decode with libjpeg-turbo, its accurate transform and smooth chroma."""
    assert (
        difference(
            scripts, encode(333, 251, "JPEG", smooth=True, **options), PreprocessSpec()
        ).max()
        == 0
    )


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palette_pictures_give_the_same_pixels(scripts, mode):
    with Image.open(io.BytesIO(encode(90, 70, smooth=True))) as image:
        stream = io.BytesIO()
        image.convert(mode).save(stream, "PNG")
    assert (
        difference(scripts, stream.getvalue(), PreprocessSpec(resize_size=64, crop=(64, 64))).max()
        == 0
    )


def test_transparent_pixels_show_the_specs_background(scripts):
    """The canvas blends with another rounding than Pillow: two levels, also after the resize."""
    encoded = encode(90, 70, mode="RGBA")
    assert (
        difference(
            scripts,
            encoded,
            PreprocessSpec(resize_size=64, crop=(64, 64), background=(200, 30, 90)),
        ).max()
        <= 2
    )


def test_a_large_jpeg_that_python_reduces_while_decoding_gives_nearly_the_same_pixels(scripts):
    """The browser decodes at full size.

    Python rounds to 8 bits twice more: below one level in the mean.
    """
    found = difference(
        scripts, encode(1600, 1200, "JPEG", smooth=True, quality=92), PreprocessSpec(dct_margin=2.0)
    )
    assert found.mean() < 1.0
    assert np.percentile(found, 99) <= 3


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        (b"", "The file is empty."),
        (b"hello, world", "This is no image. Expected JPEG, PNG, WEBP."),
        (encode(8, 8, "GIF"), "This is a GIF file. Expected JPEG, PNG, WEBP: convert it first."),
        (encode(8, 8, "PNG")[:20], "This PNG file is damaged or cut short."),
        (encode(8, 8, "JPEG")[:-200], "This JPEG file is damaged or cut short."),
        (
            encode(3, 20_000, "PNG"),
            (
                "The image has 3 x 20000 pixels. Expected sides of at most 16384 and at most"
                " 25000000 pixels: scale it down first."
            ),
        ),
        (
            encode(99, 99, "JPEG")[:-2000],
            "This JPEG file is damaged, or of a kind or size that this browser cannot read.",
        ),
        (
            encode(8, 8, "PNG")[:60],
            "This PNG file is damaged, or of a kind or size that this browser cannot read.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_reason(scripts, encoded, text):
    spec = PreprocessSpec(formats=("JPEG", "PNG", "WEBP"), max_side=16_384, max_pixels=25_000_000)
    assert in_browser(scripts, encoded, spec) == text


def test_a_format_that_no_browser_reads_is_refused_by_name(scripts):
    assert (
        in_browser(scripts, encode(8, 8, "TIFF"), PreprocessSpec())
        == "This is a TIFF file, which this page cannot read: convert it first."
    )
