"""Pixels of any Pillow mode as sRGB: depth, palette, transparency, CMYK and ICC profiles."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from models.errors import UnsupportedFormat
from models.pixels.steps import Record

SRGB_TOLERANCE = 1
"""A profile that changes no probe colour by more than this many levels of 255 is sRGB.

Of the 145 profiles in 500 ImageNet photos, the 99 that are called sRGB IEC61966-2.1 or Nikon sRGB
change colours by 0 or 1, the nearest other one by 9.
"""

_OPAQUE = {
    **{mode: mode for mode in ("L", "RGB", "CMYK")},
    **dict.fromkeys(("LA", "1"), "L"),
    **dict.fromkeys(("RGBA", "P", "YCbCr", "LAB", "RGBX"), "RGB"),
}
"""Pillow mode of an image -> that of its pixels without transparency."""
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""ICC data colour space -> the Pillow mode that it describes."""


def to_srgb(
    image: Image.Image,
    *,
    profile: bytes | None,
    background: tuple[int, int, int],
    record: Record | None = None,
) -> Image.Image:
    """*image* in mode RGB, on *background* where it is transparent.

    It is *image* itself where nothing changes. *profile* is an ICC profile, converted with
    perceptual intent. A damaged one, or one for another colour space, is ignored as browsers do.
    *record* gets what was done.

    Raises `UnsupportedFormat` for samples without a defined range (32 bits, floating point).
    """
    colour, alpha = _separate(image)
    mode, transform = (profile and _conversion(profile)) or ("", None)
    if mode == "RGB" and colour.mode == "L":
        colour = colour.convert("RGB")
    by_profile = transform is not None and mode == colour.mode
    if transform is not None and by_profile:
        colour = transform.apply(colour)
    elif colour.mode != "RGB":
        colour = colour.convert("RGB")
    if record is not None:
        laid = () if alpha is None else background
        record.coloured(image, colour, by_profile=by_profile, laid=laid)
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
    opaque = _OPAQUE.get(image.mode)
    if opaque is None:
        raise UnsupportedFormat(
            f"received {image.format or 'image'} samples of Pillow mode {image.mode}, expected 8 or"
            " 16 bits per sample: convert it first"
        )
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    return image if opaque == image.mode else image.convert(opaque), alpha


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
def _conversion(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """Mode of the pixels, and the transform of *profile* to sRGB.

    None if the profile is sRGB already, damaged, or of a colour space that no image here has.
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
            # With lcms's cache of the last pixel, threads could not share a transform.
            ImageCms.Flags.NOCACHE,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if mode != "CMYK" and _is_identity(transform, mode) else (mode, transform)


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether *transform* keeps a grid of 17 levels a channel, within `SRGB_TOLERANCE`."""
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
