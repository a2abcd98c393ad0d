"""The record of a preprocessing says what was done, and changes nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels
from models.pixels.steps import TURNED, Record

SPEC = PreprocessSpec(resize_size=32, crop=(24, 24), dct_margin=2.0)


def encoded(size, *, mode="RGB", kind="JPEG", **options):
    width, height = size
    ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(ramp).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def recorded(content, spec=SPEC):
    record = Record()
    pixels_HWC = to_pixels(content, spec, record=record)
    np.testing.assert_array_equal(pixels_HWC, to_pixels(content, spec))
    return record, {step.step: step for step in record.steps}


def test_a_large_photo_is_decoded_smaller_and_says_at_which_scale():
    record, steps = recorded(encoded((800, 400)))
    assert list(steps) == ["decode", "colour", "orient", "resize", "crop"]
    assert (record.format, record.size, record.mode) == ("JPEG", (800, 400), "RGB")
    assert (steps["decode"].scale, steps["decode"].size) == ("1/4", (200, 100))
    assert steps["resize"].size == (64, 32)
    assert steps["crop"].box == (20, 4, 44, 28)
    assert record.crop_in_photo == (20 / 64, 4 / 32, 44 / 64, 28 / 32)


@pytest.mark.parametrize("orientation", sorted(TURNED))
def test_a_turned_photo_is_measured_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    record, steps = recorded(encoded((60, 40), exif=exif))
    assert record.orientation == orientation
    assert steps["orient"].size == ((40, 60) if orientation >= 5 else (60, 40))
    assert TURNED[orientation] in steps["orient"].sentence


def test_an_orientation_that_the_package_ignores_is_told():
    exif = Image.Exif()
    exif[274] = 6
    spec = SPEC.model_copy(update={"apply_exif_orientation": False})
    _, steps = recorded(encoded((60, 40), exif=exif), spec)
    assert "orientation 6 was ignored" in steps["orient"].sentence


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("RGB", "PNG", "Nothing was converted"),
        ("L", "PNG", "converted from mode L to RGB"),
        ("CMYK", "JPEG", "converted from mode CMYK to RGB"),
        ("RGBA", "PNG", "laid on the colour"),
    ],
)
def test_what_became_of_the_colours_is_told(mode, kind, said):
    record, steps = recorded(encoded((60, 40), mode=mode, kind=kind))
    assert record.mode == mode
    assert said in steps["colour"].sentence


def test_a_profile_is_named_and_a_damaged_one_does_no_harm():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    record, steps = recorded(encoded((60, 40), icc_profile=profile))
    assert record.colour_profile == "sRGB built-in"
    assert "count as sRGB" in steps["colour"].sentence
    damaged, _ = recorded(encoded((60, 40), icc_profile=profile[:50]))
    assert damaged.colour_profile == "unreadable"


def test_a_border_lies_outside_the_photo():
    spec = SPEC.model_copy(update={"resize": "letterbox"})
    record, steps = recorded(encoded((80, 40)), spec)
    assert steps["border"].box == (0, 6, 24, 18)
    assert record.crop_in_photo == (0.0, -0.5, 1.0, 1.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_photos_of_one_row_or_column_are_recorded_too(size):
    record, steps = recorded(encoded(size, kind="PNG"))
    assert steps["crop"].size == (24, 24)
    assert np.isfinite(record.crop_in_photo).all()
