"""Pixels of any Pillow mode as sRGB: depth, palette, transparency, CMYK and ICC profiles."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from models.errors import UnsupportedFormat

SRGB_TOLERANCE = 1
"""A profile that moves no probe colour by more than this many levels of 255 is sRGB. Of the 145 profiles in 500 ImageNet photos,
the 99 that are called sRGB IEC61966-2.1 or Nikon sRGB move by 0 or 1, the nearest other one by 9."""

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""ICC data colour space -> the Pillow mode that it describes."""


@dataclass(frozen=True, slots=True)
class _Conversion:
    """From pixels of `mode` to sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform


def to_srgb(
    image: Image.Image, *, profile: bytes | None, background: tuple[int, int, int]
) -> Image.Image:
    """*image* in mode RGB, on *background* where it is transparent; *image* itself where that
    changes nothing.

    *profile* is an ICC profile, converted with perceptual intent. One that is damaged, or for
    another colour space than the pixels', is passed over as browsers do: the picture is still
    better than none.

    Raises `UnsupportedFormat` for samples without a defined range (32 bits, floating point).
    """
    colour, alpha = _separate(image)
    conversion = _conversion(profile) if profile is not None else None
    if conversion is not None and conversion.mode == "RGB" and colour.mode == "L":
        colour = colour.convert("RGB")
    if conversion is not None and conversion.mode == colour.mode:
        colour = conversion.transform.apply(colour)
    elif colour.mode != "RGB":
        colour = colour.convert("RGB")
    if alpha is None:
        return colour
    canvas = Image.new("RGB", colour.size, background)
    canvas.paste(colour, mask=alpha)
    return canvas


def _separate(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """*image* as L, RGB or CMYK without transparency, and its alpha as L, or None."""
    if image.mode.startswith("I;16"):
        return _separate_16_bit(image)
    if image.mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    match image.mode:
        case "L" | "RGB" | "CMYK":
            return image, None
        case "LA":
            return image.getchannel("L"), image.getchannel("A")
        case "RGBA":
            return image.convert("RGB"), image.getchannel("A")
        case "1":
            return image.convert("L"), None
        case "P" | "YCbCr" | "LAB" | "RGBX":
            return image.convert("RGB"), None
    raise UnsupportedFormat(
        f"received {image.format or 'image'} samples of Pillow mode {image.mode}, expected 8 or 16"
        " bits per sample: convert it first"
    )


def _separate_16_bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The high bytes: Pillow's own conversion would clip at 255."""
    samples: NDArray[np.uint16] = np.asarray(image)
    grey = Image.fromarray((samples >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    return grey, (
        None
        if transparent is None
        else Image.fromarray((samples != transparent).astype(np.uint8) * np.uint8(255))
    )


@lru_cache(maxsize=32)
def _conversion(profile: bytes) -> _Conversion | None:
    """The conversion of *profile* to sRGB; None where it is sRGB already, damaged, or of a colour
    space that no image here has.

    Building one takes 2 ms, about as long as decoding a photo, and cameras share a few profiles.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space)
        if mode is None:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            # lcms keeps the last pixel in the transform; without it a transform is safe to share
            # between threads by construction.
            ImageCms.Flags.NOCACHE,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return (
        None if mode != "CMYK" and _is_identity(transform, mode) else _Conversion(mode, transform)
    )


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether *transform* leaves a grid of 17 levels for each channel as it is, within
    `SRGB_TOLERANCE`.
    """
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = (
        np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, -1, 3)
        if mode == "RGB"
        else levels[None]
    )
    probe = Image.fromarray(np.ascontiguousarray(grid))
    moved = np.asarray(transform.apply(probe), np.int16) - np.asarray(
        probe.convert("RGB"), np.int16
    )
    return bool(np.abs(moved).max() <= SRGB_TOLERANCE)
