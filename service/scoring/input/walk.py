"""Lists files: a folder or a bucket's prefix, and globs, in a defined order.

Files are streamed. The names of one folder at a time are in memory.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from service.scoring.input.places import (
    file_system,
    is_remote,
    local_path,
    raising_storage_lost,
    scheme_of,
)

MAGIC = re.compile(r"[*?\[{]")
_TOKENS = re.compile(r"\*\*/|\*\*|\[.[^\]]*\]|.", re.DOTALL)
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Listed(NamedTuple):
    """Something below a folder."""

    path: str
    is_folder: bool = False
    error: OSError | None = None
    """Why a folder could not be listed, or a link not followed."""


def walk(place: str, *, depth: int | None = None) -> Iterator[Listed]:
    """Every file and folder below *place*, sorted by name, except hidden ones (`.name`).

    A folder comes before its contents. *depth* bounds the levels: 1 is *place* itself. Raises
    `StorageLost` for a bucket.
    """
    if is_remote(place):
        with raising_storage_lost(place):
            yield from (
                _walk_s3(place) if scheme_of(place) in {"s3", "s3a"} else _walk_remote(place, depth)
            )
    else:
        yield from _walk_local(local_path(place), depth)


def glob(pattern: str) -> Iterator[Listed]:
    """What matches *pattern*.

    `*`, `?` and `[...]` match within a name, `**` matches across folders. `{a,b}` and `{000..009}`
    are expanded.
    """
    for one in expand_braces(pattern):
        base, names = _split(one)
        if not names:
            yield Listed(one)
            continue
        regex = "".join(_regex(token) for token in _TOKENS.findall(names))
        matches = re.compile(regex, re.DOTALL).fullmatch
        depth = None if "**" in names else names.count("/") + 1
        for found in walk(base or ".", depth=depth):
            # A folder that cannot be read may hold matches, unless it is the missing base folder.
            unread = found.is_folder and found.error is not None
            missing = isinstance(found.error, FileNotFoundError | NotADirectoryError)
            if (unread and not missing) or matches(found.path.removeprefix(base)):
                yield found


def expand_braces(pattern: str) -> list[str]:
    """*pattern* for each choice of its `{a,b}` and `{000..009}`.

    Numbers are padded to the width of the first.
    """
    pieces = _BRACES.split(pattern)
    # Every second piece was in braces.
    return [
        "".join(choice)
        for choice in itertools.product(
            *([piece] if at % 2 == 0 else _choices(piece) for at, piece in enumerate(pieces))
        )
    ]


def _choices(inner: str) -> list[str]:
    if numbers := _RANGE.fullmatch(inner):
        first, last = numbers.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inner.split(",")


def _split(pattern: str) -> tuple[str, str]:
    """(folder without wildcards, with its slash; the rest) of *pattern*."""
    wildcard = MAGIC.search(pattern)
    at = pattern.rfind("/", 0, wildcard.start()) + 1 if wildcard else len(pattern)
    return pattern[:at], pattern[at:]


def _regex(token: str) -> str:
    """The regular expression for one token of a pattern."""
    if token[0] == "[" and len(token) > 1:
        token = token.replace("\\", "\\\\")
        return f"[^{token[2:]}" if token[1] == "!" else token
    return _WILDCARDS.get(token) or re.escape(token)


def _walk_local(place: str, depth: int | None) -> Iterator[Listed]:
    """As `walk`. A stack instead of recursion: folders may be nested a thousand deep."""
    waiting: list[tuple[Listed, tuple[tuple[int, int], ...]]] = [
        (Listed(place, is_folder=True), ())
    ]
    while waiting:
        found, parents = waiting.pop()
        if parents:
            yield found
        if not found.is_folder or len(parents) == depth:
            continue
        try:
            state = os.stat(found.path)  # noqa: PTH116 - text in, text out, a million times
            folder = (state.st_dev, state.st_ino)
            if folder in parents:  # a link back to a folder above
                continue
            with os.scandir(found.path) as entries:
                names = sorted(
                    (_found(entry, found.path) for entry in entries if entry.name[0] != "."),
                    reverse=True,
                )
        except OSError as error:
            yield Listed(found.path, is_folder=True, error=error)
            continue
        waiting += [(one, (*parents, folder)) for one in names]


def _found(entry: os.DirEntry[str], folder: str) -> Listed:
    """*entry* of *folder*. A link that leads nowhere has an error instead of failing the folder."""
    path = entry.name if folder == "." else os.path.join(folder, entry.name)  # noqa: PTH118 - likewise
    try:
        is_folder = entry.is_dir()
        # Only a link costs another call.
        if not is_folder and entry.is_symlink():
            entry.stat()
    except OSError as error:
        return Listed(path, error=error)
    return Listed(path, is_folder)


def _walk_s3(place: str) -> Iterator[Listed]:
    """Keys in S3's own order, a page at a time.

    fsspec's `find` and `walk` would hold a whole prefix in memory.
    """
    scheme, _, rest = place.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    more: dict[str, str] = {}
    while True:
        page = file_system(scheme).call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        for entry in page.get("Contents", ()):
            key = entry["Key"]
            if not key.endswith("/") and not any(
                part.startswith(".") for part in key[len(prefix) :].split("/")
            ):
                yield Listed(f"{scheme}://{bucket}/{key}")
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _walk_remote(place: str, depth: int | None) -> Iterator[Listed]:
    scheme = scheme_of(place)
    for folder, _, files in file_system(scheme).walk(
        place, maxdepth=depth, detail=False, on_error="raise"
    ):
        for name in sorted(files):
            if not name.startswith("."):
                yield Listed(f"{scheme}://{folder.strip('/')}/{name}")
