"""Files below a folder or a bucket's prefix, in a defined order and streamed: memory is that of one
folder's names.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from service.scoring.input.places import file_system, is_remote, local_path, scheme_of, storage_kept

MAGIC = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Found(NamedTuple):
    """Something below a folder."""

    path: str
    is_folder: bool = False
    error: OSError | None = None
    """Why a folder could not be looked into, or where a link does not lead."""


def walk(place: str, *, depth: int | None = None) -> Iterator[Found]:
    """Every file and folder below *place* by name, a folder before what lies in it; hidden ones
    (`.name`) are passed over.

    *depth* bounds the levels: 1 is *place* itself. Raises `StorageLost` for a bucket.
    """
    if is_remote(place):
        with storage_kept(place):
            yield from (
                _walk_s3(place) if scheme_of(place) in {"s3", "s3a"} else _walk_remote(place, depth)
            )
    else:
        yield from _walk_local(local_path(place), depth)


def glob(pattern: str) -> Iterator[Found]:
    """What matches *pattern*: `*`, `?`, `[...]` within a name, `**` over folders, `{a,b}`,
    `{000..009}`.
    """
    for one in expand_braces(pattern):
        base, names = _split(one)
        if not names:
            yield Found(one)
            continue
        matches = re.compile(_translate(names)).fullmatch
        depth = None if "**" in names else names.count("/") + 1
        prefix = f"{base}/" if base and not base.endswith("/") else base
        for found in walk(base or ".", depth=depth):
            # A folder that cannot be looked into may hold what matches, unless there is none where
            # the wildcards begin.
            closed = (
                found.is_folder
                and found.error is not None
                and not isinstance(found.error, FileNotFoundError | NotADirectoryError)
            )
            if closed or matches(_below(found.path, prefix)):
                yield found


def expand_braces(pattern: str) -> list[str]:
    """*pattern* for each choice of its `{a,b}` and `{000..009}`; numbers keep the width of the
    first.
    """
    pieces = _BRACES.split(pattern)
    # Every second piece stood in braces.
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


def _below(path: str, prefix: str) -> str:
    return path.removeprefix("./").removeprefix(prefix)


def _split(pattern: str) -> tuple[str, str]:
    """(folder without wildcards, the rest) of *pattern*."""
    scheme, separator, rest = pattern.rpartition("://")
    parts = rest.split("/")
    first = next((at for at, part in enumerate(parts) if MAGIC.search(part)), None)
    if first is None:
        return pattern, ""
    base = "/".join(parts[:first]) or ("/" if rest.startswith("/") else "")
    return f"{scheme}{separator}{base}", "/".join(parts[first:])


def _translate(pattern: str) -> str:
    """*pattern* as a regular expression."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            out, at = out + f"[{'^' + inner[1:] if inner[0] == '!' else inner}]", end + 1
        else:
            out, at = (
                out + {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at])),
                at + 1,
            )
    return out


def _walk_local(place: str, depth: int | None) -> Iterator[Found]:
    """As `walk`."""
    # The entries still to come of each folder on the way down, and what tells the folder: a link
    # back to one of them is not followed.
    way: list[tuple[Iterator[tuple[str, bool, OSError | None]], str, tuple[int, int]]] = []

    def enter(folder: str) -> Iterator[Found]:
        try:
            state = os.stat(folder)  # noqa: PTH116 - text in, text out, a million times
            if any((state.st_dev, state.st_ino) == above for _, _, above in way):
                return
            with os.scandir(folder) as entries:
                names = sorted(
                    (_entered(entry) for entry in entries if not entry.name.startswith(".")),
                    key=lambda one: one[0],
                )
        except OSError as error:
            yield Found(folder, is_folder=True, error=error)
            return
        way.append((iter(names), folder, (state.st_dev, state.st_ino)))

    yield from enter(place)
    while way:
        entries, folder, _ = way[-1]
        name, is_folder, error = next(entries, ("", False, None))
        if not name:
            way.pop()
            continue
        path = name if folder == "." else os.path.join(folder, name)  # noqa: PTH118 - likewise
        yield Found(path, is_folder, error)
        if is_folder and (depth is None or len(way) < depth):
            yield from enter(path)


def _entered(entry: os.DirEntry[str]) -> tuple[str, bool, OSError | None]:
    """Name, whether it is a folder, and why that cannot be told: a link that leads nowhere costs no
    other file of its folder.
    """
    try:
        is_folder = entry.is_dir()
        # Only a link costs another call.
        if not is_folder and entry.is_symlink():
            entry.stat()
    except OSError as error:
        return entry.name, False, error
    return entry.name, is_folder, None


def _walk_s3(place: str) -> Iterator[Found]:
    """Keys in S3's own order, a page at a time. fsspec's `find` and `walk` hold a whole prefix in
    memory.
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
                yield Found(f"{scheme}://{bucket}/{key}")
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _walk_remote(place: str, depth: int | None) -> Iterator[Found]:
    scheme = scheme_of(place)
    for folder, _, files in file_system(scheme).walk(
        place, maxdepth=depth, detail=False, on_error="raise"
    ):
        for name in sorted(files):
            if not name.startswith("."):
                yield Found(f"{scheme}://{folder.strip('/')}/{name}")
