"""Files by a pattern with `*`, `?`, `[...]`, `**`, `{a,b}` for either, and `{000..009}`."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from models.errors import DataError

PATTERNS_MAX = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def matching(pattern: str) -> list[Path]:
    """The files that match *pattern*, each once. A file of exactly this name comes first.

    Raises `DataError`.
    """
    if not pattern.strip():
        raise DataError(
            "the source names no file; expected csv:PATH or tar:PATTERN, such as"
            " tar:shards/{train,val}-*.tar"
        )
    patterns = [pattern] if os.path.isfile(pattern) else expand_braces(pattern)  # noqa: PTH113 - Path.is_file raises for long names
    return list(dict.fromkeys(path for one in patterns for path in _matching_one(one)))


def expand_braces(pattern: str) -> list[str]:
    """*pattern* for each choice of its `{a,b}` and `{000..009}`; numbers are as wide as 000."""
    pieces = _BRACES.split(pattern)
    # Every second piece stood in braces.
    choices = [[piece] if at % 2 == 0 else _choices(piece) for at, piece in enumerate(pieces)]
    return [
        "".join(choice) for choice in itertools.islice(itertools.product(*choices), PATTERNS_MAX)
    ]


def _choices(inner: str) -> list[str]:
    if numbers := _RANGE.fullmatch(inner):
        first, last = numbers.groups()
        if (
            max(len(first), len(last)) > len(str(PATTERNS_MAX))
            or int(last) - int(first) >= PATTERNS_MAX
        ):
            raise DataError(f"{{{inner}}} stands for too many files; at most {PATTERNS_MAX:,}")
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inner.split(",")


def _matching_one(pattern: str) -> list[Path]:
    if os.path.isfile(pattern):  # noqa: PTH113 - Path.is_file raises for long names
        return [Path(pattern)]
    path = Path(pattern)
    base = Path(path.anchor) if path.anchor else Path()
    try:
        return sorted(
            match
            for match in base.glob(str(path.relative_to(path.anchor) if path.anchor else path))
            if match.is_file()
        )
    except (ValueError, OSError, IndexError, NotImplementedError) as error:
        raise DataError(f"{pattern} cannot be looked up: {error}") from error


def names_of(files: list[Path]) -> list[str]:
    """The path of each of *files* below the folder that all have in common."""
    absolute = [path.absolute() for path in files]
    common = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(common).as_posix() for path in absolute]
