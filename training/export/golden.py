"""Golden images: by them, whoever opens a package sees whether it still answers as it did."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import chain
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
"""Each is answered whenever a worker opens the package."""
MOST_TRIED = 100
"""Held-out images that are looked at until there are enough."""
MADE = "made"
MADE_SIZES = ((320, 240), (240, 320), (401, 301), (97, 256))
"""(width, height) of made images: wide, tall, odd sides, narrow."""
SUFFIXES = {"JPEG": ".jpg"}

Named = tuple[str, bytes]
"""File name in `golden/`, and content."""


def golden_files(
    examples: Sequence[Example], spec: PreprocessSpec, *, given: str | None
) -> list[Named]:
    """Images without metadata, some of *examples* of different classes if none are *given*.

    *given* is a folder of images, or `made`. Raises `ExportError` where there are none to be had.
    """
    if given is None:
        found = list(_held_out(examples, spec))
    elif given == MADE:
        found = [_made(size, spec) for size in MADE_SIZES]
    else:
        found = list(_in_folder(Path(given), spec))
    return [(f"{index}{_suffix(encoded)}", encoded) for index, encoded in enumerate(found)]


def _held_out(examples: Sequence[Example], spec: PreprocessSpec) -> Iterator[bytes]:
    tried: set[str] = set()
    taken = 0
    for example in chain(limited(examples, GOLDEN_IMAGES), limited(examples, MOST_TRIED)):
        if taken == GOLDEN_IMAGES:
            return
        if (
            example.name not in tried
            and (alone := without_metadata(example.read(), spec)) is not None
        ):
            taken += 1
            yield alone
        tried.add(example.name)
    if taken == 0:
        raise ExportError(
            f"none of {len(tried)} held-out images can be freed of its metadata without changing a"
            f" pixel; give others with --golden FOLDER (JPEG, PNG or WebP), or say --golden {MADE}"
        )


def _in_folder(folder: Path, spec: PreprocessSpec) -> Iterator[bytes]:
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
    for path in paths:
        if not path.is_file():
            raise ExportError(
                f"golden image {path} is not a file; expected images alone in {folder}"
            )
        try:
            alone = without_metadata(path.read_bytes(), spec)
        except OSError as error:
            raise ExportError(f"golden image {path} cannot be read: {error.strerror}") from error
        except RequestError as error:
            raise ExportError(f"golden image {path}: {error}") from error
        if alone is None:
            raise ExportError(
                f"golden image {path} cannot be freed of its metadata without changing a pixel;"
                " save it as PNG first"
            )
        yield alone


def _made(size: tuple[int, int], spec: PreprocessSpec) -> bytes:
    """Waves of colour, smooth as photos are, as JPEG where *spec* takes it."""
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
