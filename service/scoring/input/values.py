"""Values of a table as every output can hold them.

The rules stand in docs/scoring.md and are applied where a row is read.

So what a row cannot represent shows in the row itself, and never when the output of a whole job is
written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from service.scoring.input.items import Scalar

INT64 = 2**63
SHOWN_BYTES = 64
"""Bytes of up to this length (digests, UUIDs, keys) are shown in hexadecimal, longer ones as their length."""


def plain_text(text: str) -> str:
    r"""*text* with what is no Unicode character (bytes of a file name, lone surrogates) written
    out, as `\udce4`.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def scalar(value: Any) -> Scalar:  # Any: whatever a JSON parser or pyarrow returns
    """*value* if it is a text, truth value, float or int64.

    Everything else becomes text: lists and records as JSON.
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
    """*names*, with `_2`, `_3` behind each that an earlier one or one of *taken* equals in any
    letter case.
    """
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
