"""File endings of images, by which folders and archives are searched."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache

ENDINGS: Mapping[str, str] = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".gif": "GIF",
    ".avif": "AVIF",
    **dict.fromkeys((".heic", ".heif"), "HEIC"),
}
"""Ending in lower case -> the format that it stands for."""
LISTED = ", ".join(ENDINGS)
"""For messages."""


@cache
def what_is_missing(ending: str) -> str | None:
    """What to install for images with *ending* (lower case); None if nothing is missing."""
    # Here and not above: the client needs `ENDINGS`, and has no Pillow.
    from PIL import features

    match ENDINGS.get(ending):
        case "AVIF" if not features.check("avif"):
            return "install Pillow's own wheel"
        case "HEIC" if importlib.util.find_spec("pillow_heif") is None:
            return "pip install 'loupe-vision[heif]'"
    return None
