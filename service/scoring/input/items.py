"""Items, the rows of an input, gathered into units; and which values they carry.

Work, journal and batches all go by units: no batch spans two of them. So an image is always in the
same batch. Its answer is the same to the last bit, however often the job is killed and resumed, and
with both engines.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Scalar: TypeAlias = str | int | float | bool | None
INT64 = 2**63
SHOWN_BYTES = 64
"""Bytes up to this length (digests, UUIDs, keys) become hexadecimal text, longer ones a length."""
UNIT_ITEMS = 64
"""Enough to fill batches of 16, and so few that the first answers come within a second."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one image cannot be scored."""

    code: str
    """One of those in docs/scoring.md."""
    reason: str
    storage_error: str = ""
    """Why the whole storage may be gone, if that is possible."""
    was_read: bool = False
    """Whether the file was read, and its content is at fault."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the input."""

    path: str
    """As the input names it; the output's column `path`."""
    url: str = ""
    """The file or archive to read: a local path or `scheme://...`."""
    member: int | None = None
    """Position in the directory of a zip. Two members may have the same name."""
    offset: int | None = None
    """First byte in a tar."""
    size: int | None = None
    """Bytes in a tar."""
    extra: tuple[tuple[str, Scalar], ...] = ()
    """The input's other columns."""
    fault: Fault | None = None
    """Set if the listing knows already that the item cannot be read."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Items that are scored and recorded together."""

    index: int
    first_row: int
    """Row of the first item in the whole input, from 0."""
    items: tuple[Item, ...]
    digest: str
    """Hash of all items up to the end of this unit. It must be the same when a job resumes."""


def units_of(items: Iterable[Item]) -> Iterator[Unit]:
    """*items* in units of `UNIT_ITEMS`, the last one shorter."""
    digest, rows = hashlib.sha256(), iter(items)
    for index in itertools.count():
        taken = list(itertools.islice(rows, UNIT_ITEMS))
        if not taken:
            return
        digest.update(repr(taken).encode("utf-8", "backslashreplace"))
        yield Unit(index, index * UNIT_ITEMS, tuple(taken), digest.hexdigest()[:32])


def plain_text(text: str) -> str:
    r"""*text* with lone surrogates escaped, as `\udce4`: they are bytes of a file name."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def scalar(value: Any) -> Scalar:  # Any: whatever a JSON parser or pyarrow returns
    """*value* as every output can hold it: a text, truth value, float or int64.

    Everything else becomes text, lists and records JSON. The rules are in docs/scoring.md. They
    apply when a row is read, so that no row can make the output fail.
    """
    if isinstance(value, str):
        return plain_text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -INT64 <= value < INT64 else str(value)
    if isinstance(value, np.generic):
        return scalar(value.item())
    return plain_text(
        json_text(value) if isinstance(value, list | tuple | dict) else str(_plain(value))
    )


def json_text(value: Any) -> str:
    """*value* as JSON.

    NaN and the infinities, which JSON lacks, become null; a float32 gets the fewest digits that
    give it back.
    """
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=_plain, ensure_ascii=False, allow_nan=False)


def distinct(names: Iterable[str], *, taken: Iterable[str] = ()) -> list[str]:
    """*names*, made unique among themselves and *taken*, in any letter case, by `_2`, `_3`."""
    used = {name.casefold() for name in taken}
    found = []
    for name in names:
        new, number = name, 1
        while new.casefold() in used:
            number += 1
            new = f"{name}_{number}"
        used.add(new.casefold())
        found.append(new)
    return found


def _plain(value: Any) -> Any:
    """What JSON has for a *value* that `json` does not know."""
    match value:
        case np.floating():
            return float(str(value))
        case np.ndarray():
            return [float(text) for text in value.astype(str)]
        case bytes():
            return value.hex() if len(value) <= SHOWN_BYTES else f"<{len(value)} bytes>"
        case _:
            return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    match value:
        case float() | np.floating():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(inner) for name, inner in value.items()}
        case list() | tuple() | np.ndarray():
            return [_finite(inner) for inner in value]
        case _:
            return value
