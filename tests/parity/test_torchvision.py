"""Preprocessing equals torchvision's evaluation transform on PIL images, to the last bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from models.package.manifest import PreprocessSpec
from models.pixels.containers import read
from models.pixels.preprocess import to_pixels

transforms = pytest.importorskip(
    "torchvision.transforms", reason="torchvision is the reference; it comes with the extra `train`"
)


def reference(encoded: bytes, spec: PreprocessSpec) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    interpolation = transforms.InterpolationMode(spec.filter)
    evaluation = transforms.Compose(
        [
            transforms.Resize(spec.resize_size, interpolation=interpolation),
            transforms.CenterCrop(spec.crop),
        ]
    )
    return np.asarray(evaluation(image))


def encoded_noise(
    width: int, height: int, *, image_format: str = "PNG", **options: object
) -> bytes:
    pixels = np.random.default_rng(width * 10_007 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format, **options)
    return stream.getvalue()


SIZES = [
    (1, 1),
    (1, 2),
    (1, 600),
    (600, 1),
    (7, 5),
    (223, 224),
    (256, 256),
    (255, 257),
    (320, 685),  # Pillow 13 takes this one along columns first
    (451, 256),  # 451 - 224 = 227, which is 3 modulo 4: CenterCrop rounds half to even
    (256, 451),
    (453, 256),  # 229 is 1 modulo 4
    (500, 375),
    (375, 500),
    (1836, 1000),
    (4000, 3000),
    (3000, 4000),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_sizes(size):
    encoded = encoded_noise(*size, compress_level=1)
    np.testing.assert_array_equal(
        to_pixels(encoded, PreprocessSpec()), reference(encoded, PreprocessSpec())
    )


def test_every_remainder_of_side_less_crop_is_among_the_sizes():
    long_sides = [int(256 * max(size) / min(size)) for size in SIZES]
    assert {(side - 224) % 4 for side in long_sides} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("resize_size", "crop"),
    [
        (256, (224, 224)),
        (227, (224, 224)),
        (232, (224, 224)),
        (231, (224, 200)),
        (64, (64, 64)),
        (512, (512, 449)),
    ],
)
@pytest.mark.parametrize(
    "size", [(500, 375), (333, 500), (100, 90)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_resize_sizes_and_crops(size, resize_size, crop):
    spec = PreprocessSpec(resize_size=resize_size, crop=crop)
    encoded = encoded_noise(*size)
    np.testing.assert_array_equal(to_pixels(encoded, spec), reference(encoded, spec))


@pytest.mark.parametrize(
    "resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (180, 120), (256, 256), (400, 256)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_filters(size, resample):
    spec = PreprocessSpec(filter=resample)
    encoded = encoded_noise(*size)
    np.testing.assert_array_equal(to_pixels(encoded, spec), reference(encoded, spec))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_jpegs(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    encoded = encoded_noise(500, 333, image_format="JPEG", exif=exif)
    np.testing.assert_array_equal(
        to_pixels(encoded, PreprocessSpec()), reference(encoded, PreprocessSpec())
    )


@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    resize_size=st.sampled_from([256, 256, 232]),
)
@settings(max_examples=80, deadline=None)
def test_random_sizes(width, height, resize_size):
    spec = PreprocessSpec(resize_size=resize_size)
    encoded = encoded_noise(width, height, compress_level=1)
    np.testing.assert_array_equal(to_pixels(encoded, spec), reference(encoded, spec))


def test_imagenet_photos(shared_data):
    """All of them without colour management, which torchvision has not; with it, those whose
    profile is sRGB or that have none.
    """
    photos = sorted((shared_data / "imagenet-500").glob("*.jpg"))
    assert len(photos) == 500
    managed = 0
    for photo in photos:
        encoded = photo.read_bytes()
        expected = reference(encoded, PreprocessSpec())
        np.testing.assert_array_equal(
            to_pixels(encoded, PreprocessSpec()), expected, err_msg=photo.name
        )
        if read(encoded, "JPEG").profile is None:
            managed += 1
            np.testing.assert_array_equal(
                to_pixels(encoded, PreprocessSpec(convert_icc=True)), expected, err_msg=photo.name
            )
    assert managed == 355
