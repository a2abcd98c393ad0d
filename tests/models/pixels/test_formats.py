"""Files as phones, scanners and web sites make them: every one is decoded as Pillow shows it, or
refused with what to do.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps
from pillow_heif import register_heif_opener

from models.errors import TooManyPixels, UndecodableImage, UnsupportedFormat
from models.package.manifest import PreprocessSpec
from models.pixels import decoders
from models.pixels.containers import read, sniff
from models.pixels.preprocess import decode, to_pixels
from tests.models.pixels.test_preprocess import encode, noise, oriented, ramp, swapped_primaries

SPEC = PreprocessSpec()
register_heif_opener()


def two_pictures_and_more(photo: Image.Image) -> bytes:
    """A JPEG followed by a second one, as Ultra HDR has for its gain map."""
    return encode(photo, "JPEG") + encode(photo.convert("L").resize((16, 12)), "JPEG")


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0}),
        ("JPEG", {"subsampling": 1}),
        ("MPO", {"save_all": True}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"save_all": True, "append_images": [ramp(8, 8)]}),
        ("GIF", {"save_all": True, "append_images": [ramp(64, 48).convert("P")]}),
        ("PNG", {"save_all": True, "append_images": [ramp(64, 48)]}),
        ("WEBP", {"save_all": True, "append_images": [ramp(64, 48)]}),
        ("BMP", {}),
        ("AVIF", {}),
        ("AVIF", {"subsampling": "4:4:4"}),
        ("AVIF", {"save_all": True, "append_images": [ramp(64, 48)]}),
        ("HEIC", {}),
        ("HEIC", {"tile_size": 64}),
        ("HEIC", {"save_all": True, "append_images": [ramp(64, 48)]}),
    ],
)
def test_a_file_is_decoded_as_pillow_shows_it(image_format, options):
    encoded = encode(ramp(64, 48), image_format, **options)
    np.testing.assert_array_equal(
        decode(encoded, SPEC), Image.open(io.BytesIO(encoded)).convert("RGB")
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_a_tiff_of_every_mode_is_decoded(mode):
    encoded = encode(ramp(64, 48).convert(mode), "TIFF")
    assert decode(encoded, SPEC).size == (64, 48)


def test_what_lies_behind_a_picture_is_not_part_of_it():
    photo = ramp(64, 48)
    np.testing.assert_array_equal(
        decode(two_pictures_and_more(photo), SPEC), decode(encode(photo, "JPEG"), SPEC)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["AVIF", "HEIC"])
def test_a_picture_of_a_phone_is_upright(image_format, orientation):
    """Orientation of these formats stands beside the picture, not in its EXIF; HEIC's encoder turns
    the pixels themselves.
    """
    encoded = encode(ramp(64, 40), image_format, exif=oriented(orientation), quality=90)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode(encoded, SPEC), reference.convert("RGB"))
    assert reference.size == ((64, 40) if orientation < 5 else (40, 64))


@pytest.mark.parametrize("image_format", ["AVIF", "HEIC"])
def test_a_phones_colour_profile_is_converted(image_format):
    encoded = encode(
        Image.new("RGB", (64, 64), (200, 10, 10)),
        image_format,
        icc_profile=swapped_primaries(),
        quality=95,
    )
    red, green, _ = decode(encoded, PreprocessSpec(convert_icc=True)).getpixel((32, 32))
    assert green > 150
    assert red < 100
    assert decode(encoded, SPEC).getpixel((32, 32))[0] > 150


@pytest.mark.parametrize("image_format", ["AVIF", "HEIC"])
def test_transparency_shows_the_background(image_format):
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    encoded = encode(clear, image_format)
    assert decode(encoded, PreprocessSpec(background=(9, 99, 199))).getpixel((32, 32)) == (
        9,
        99,
        199,
    )


def test_without_the_extra_a_heic_file_says_which_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoders._heic_decoder.cache_clear()
    with pytest.raises(
        UnsupportedFormat,
        match=(
            r"^received a HEIC file, which needs one more package: pip install"
            r" 'loupe-vision\[heif\]'$"
        ),
    ):
        to_pixels(encode(ramp(64, 64), "HEIC"), SPEC)
    monkeypatch.undo()
    decoders._heic_decoder.cache_clear()
    assert to_pixels(encode(ramp(64, 64), "HEIC"), SPEC).shape == (224, 224, 3)


@pytest.mark.parametrize("image_format", ["AVIF", "HEIC"])
def test_the_size_is_known_before_the_picture_is_decoded(image_format):
    container = read(encoded := encode(noise(80, 72), image_format), image_format)
    assert (container.width, container.height) == (80, 72)
    assert sniff(encoded) == image_format


@pytest.mark.parametrize("image_format", ["AVIF", "HEIC"])
def test_a_picture_larger_than_its_header_says_is_refused_or_counted(image_format):
    """libheif refuses it without decoding; libavif would decode it, so that its frame's own header
    counts.
    """
    encoded = encode(ramp(1600, 1200), image_format, quality=50)
    at = encoded.index(b"ispe") + 8
    lying = encoded[:at] + (16).to_bytes(4, "big") * 2 + encoded[at + 8 :]
    with pytest.raises(UndecodableImage if image_format == "HEIC" else TooManyPixels):
        to_pixels(lying, PreprocessSpec(max_decode_bytes=1600 * 1200 * 10 - 1))


def test_a_part_that_is_larger_than_the_picture_counts():
    """A second picture, or a tile, of any size is fine within the limits."""
    encoded = encode(ramp(128, 96), "HEIC", save_all=True, append_images=[ramp(400, 300)])
    container = read(encoded, "HEIC")
    assert (container.width, container.height, container.fixed_bytes) == (
        128,
        96,
        (400 * 300 - 128 * 96) * container.pixel_bytes,
    )
    assert decode(encoded, SPEC).size == (128, 96)
