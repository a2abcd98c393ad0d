"""The photos that a person names: files, folders, URLs and standard input."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from models.errors import BadRequest, ImageTooLarge
from models.pixels.endings import ENDINGS
from service.predict.fetching import fetch
from service.scoring.input.inputs import skipped_text
from service.scoring.input.walk import walk

STDIN = "-"
HEAT_ENDING = ".heat.png"
"""Of heat maps. A folder's are passed over: they are no photos."""
OTHER_PLACES = (
    "expected a file, a folder, an http:// or https:// address, or -; `loupe score` reads buckets"
)
MOST_BYTES = 256 * 2**20
"""Of one photo."""
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Photo:
    """One photo, not read yet."""

    name: str
    """As a person would name it: a path, a URL, or `-`."""
    read: Callable[[], bytes]
    """Raises `RequestError` or `OSError`."""
    heat: Path
    """Where its heat map goes by itself: beside a file, and beside the folder of a folder's."""
    relative: str
    """Its heat map's path below a folder of choice."""


def photos_of(sources: Sequence[str]) -> Iterator[Photo]:
    """Every photo of *sources*, in order.

    A file or URL is taken whatever it is called; of a folder the files that end like images.
    """
    for source in sources:
        if source == STDIN:
            yield Photo(source, _read_stdin, Path(f"stdin{HEAT_ENDING}"), f"stdin{HEAT_ENDING}")
        elif source.lower().startswith(("http://", "https://")):
            yield _of_url(source)
        elif "://" in source:
            yield _failing(source, BadRequest(OTHER_PLACES))
        elif os.path.isdir(source):  # noqa: PTH112 - Path.is_dir raises for long names
            yield from _of_folder(source)
        else:
            heat = f"{Path(source).name}{HEAT_ENDING}"
            yield Photo(source, partial(read_file, source), Path(f"{source}{HEAT_ENDING}"), heat)


def read_file(path: str) -> bytes:
    """The content of the file *path*. Raises `ImageTooLarge` or `OSError`."""
    with open(path, "rb") as stream:  # noqa: PTH123 - a path as it was typed
        return _bounded(stream, path)


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise BadRequest("nothing comes in on standard input; pipe a photo, as in `< photo.jpg`")
    return _bounded(sys.stdin.buffer, "standard input")


def _bounded(stream: IO[bytes], name: str) -> bytes:
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ImageTooLarge(f"{name} has more than {MOST_BYTES:,} bytes, the most for one photo")
    return content


def _of_url(url: str) -> Photo:
    # A name that no URL can lead astray: no folder, no hidden file.
    try:
        name = PurePosixPath(urlsplit(url).path).name.lstrip(".") or "photo"
    except ValueError as error:
        return _failing(url, BadRequest(f"this is not a URL: {error}"))
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:100]
    heat = f"{safe}{HEAT_ENDING}"
    return Photo(url, partial(fetch, url, max_bytes=MOST_BYTES), Path(heat), heat)


def _of_folder(folder: str) -> Iterator[Photo]:
    # Beside the folder: heat maps among photos would be photos of the next training run.
    plain = os.path.normpath(folder)
    if os.path.basename(plain) in (".", ".."):  # noqa: PTH119 - text in, text out
        plain = os.path.abspath(plain)  # noqa: PTH100 - a name for the folder beside it
    heats = Path(f"{plain}.heat")
    others: Counter[str] = Counter()
    count = 0
    for path, is_folder, error in walk(folder):
        if error is not None:
            count += 1
            yield _failing(path, error)
        elif is_folder or path.endswith(HEAT_ENDING):
            continue
        elif path.lower().endswith(tuple(ENDINGS)):
            count += 1
            relative = f"{os.path.relpath(path, folder)}{HEAT_ENDING}"
            yield Photo(path, partial(read_file, path), heats / relative, relative)
        else:
            others[os.path.splitext(path)[1].lower() or "without an ending"] += 1  # noqa: PTH122
    if not count:
        text = skipped_text(others)
        yield _failing(folder, BadRequest(f"the folder has no photos{f': {text}' if text else ''}"))


def _failing(name: str, error: Exception) -> Photo:
    """A photo that is known to be none, so that it fails in its turn."""

    def read() -> bytes:
        raise error

    return Photo(name, read, Path(), "")
