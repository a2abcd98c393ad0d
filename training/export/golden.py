"""Golden images: opening a package checks that it still gives their recorded answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from models.errors import ExportError, RequestError
from models.package.manifest import PreprocessSpec
from models.pixels import containers
from training.data.loader import limited
from training.data.source import Example
from training.export.metadata import without_metadata

GOLDEN_IMAGES = 4
MOST_GIVEN = 32
"""Every worker that opens the package answers each of them."""
MOST_TRIED = 100
"""Held-out images that are tried until there are enough."""
MADE = "made"
MADE_SIZES = ((320, 240), (240, 320), (401, 301), (97, 256))
"""(width, height) of made images: wide, tall, odd sides, narrow."""
SUFFIXES = {"JPEG": ".jpg"}

Named = tuple[str, bytes]
"""File name in `golden/`, and content."""


def golden_files(
    examples: Sequence[Example], spec: PreprocessSpec, *, given: str | None
) -> list[Named]:
    """Images without metadata: by default some of *examples* of different classes.

    *given* is a folder of images, or `made`. Raises `ExportError` if there are no such images.
    """
    if given is None:
        found = _held_out(examples, spec)
    elif given == MADE:
        found = [_made(size, spec) for size in MADE_SIZES]
    else:
        found = [_given(path, spec) for path in _listed(Path(given))]
    return [(f"{index}{_suffix(encoded)}", encoded) for index, encoded in enumerate(found)]


def _held_out(examples: Sequence[Example], spec: PreprocessSpec) -> list[bytes]:
    tried = {
        example.name: example
        for example in (*limited(examples, GOLDEN_IMAGES), *limited(examples, MOST_TRIED))
    }
    cut = (without_metadata(example.read(), spec) for example in tried.values())
    found = list(islice((encoded for encoded in cut if encoded is not None), GOLDEN_IMAGES))
    if not found:
        raise ExportError(
            f"none of {len(tried)} held-out images can be freed of its metadata without changing a"
            f" pixel; give others with --golden FOLDER (JPEG, PNG or WebP), or say --golden {MADE}"
        )
    return found


def _listed(folder: Path) -> list[Path]:
    """The files in *folder*, in order."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ExportError(
            f"golden images {folder}: {error.strerror}; expected a folder of images, or {MADE}"
        ) from error
    if not 1 <= len(paths) <= MOST_GIVEN:
        raise ExportError(
            f"golden images {folder}: the folder holds {len(paths)} files, expected 1 to"
            f" {MOST_GIVEN} images"
        )
    return paths


def _given(path: Path, spec: PreprocessSpec) -> bytes:
    if not path.is_file():
        raise ExportError(
            f"golden image {path} is not a file; expected images alone in {path.parent}"
        )
    try:
        encoded = without_metadata(path.read_bytes(), spec)
    except OSError as error:
        raise ExportError(f"golden image {path} cannot be read: {error.strerror}") from error
    except RequestError as error:
        raise ExportError(f"golden image {path}: {error}") from error
    if encoded is None:
        raise ExportError(
            f"golden image {path} cannot be freed of its metadata without changing a pixel; save"
            " it as PNG first"
        )
    return encoded


def _made(size: tuple[int, int], spec: PreprocessSpec) -> bytes:
    """Waves of colour, smooth like a photo, as JPEG if *spec* takes it."""
    image_format = next((one for one in ("JPEG", "PNG") if one in spec.formats), spec.formats[0])
    width, height = size
    x_HW, y_HW = np.meshgrid(np.linspace(0.0, 1.0, width), np.linspace(0.0, 1.0, height))
    phases_HWC = np.stack(
        [5.0 * x_HW + 2.0 * y_HW, 3.0 * y_HW - 4.0 * x_HW, 7.0 * x_HW * y_HW + width], axis=-1
    )
    stream = io.BytesIO()
    Image.fromarray((127.5 + 127.5 * np.sin(2.0 * np.pi * phases_HWC)).astype(np.uint8)).save(
        stream, image_format
    )
    return stream.getvalue()


def _suffix(encoded: bytes) -> str:
    found = containers.sniff(encoded)
    assert found is not None, "it was decoded"
    return SUFFIXES.get(found, f".{found.lower()}")
