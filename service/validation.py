"""What pydantic finds wrong in a document, in words for the person who wrote it."""

from __future__ import annotations

import reprlib

from pydantic import ValidationError

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 1


def first_fault(error: ValidationError) -> str:
    """The first fault that *error* names: where it is, what was found, what is expected.

    Such as `inputs[0].shape is 3; expected a valid list`.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    place = "".join(steps).removeprefix(".") or "the document"
    if first["type"] == "missing":
        return f"{place} is missing"
    expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if first["type"] == "model_type":
        expected = "expected a JSON object"
    return f"{place} is {_SHORT.repr(first['input'])}; {expected}"
