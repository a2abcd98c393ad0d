"""Names of models and aliases, from which no path can be formed."""

from __future__ import annotations

import re

from models.errors import StoreError

NAME_RULE = (
    "lowercase letters, digits, '.', '_' and '-', starting with a letter or digit, not only digits,"
    " at most 64 characters"
)

_PATTERN = re.compile(r"(?![0-9]+\Z)[a-z0-9][a-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether *text* obeys `NAME_RULE`."""
    return _PATTERN.fullmatch(text) is not None


def check_name(what: str, text: str) -> None:
    """Raises `StoreError` unless *text*, which is a *what* (`model name`), obeys `NAME_RULE`."""
    if not is_name(text):
        raise StoreError(f"{what} {text!r} cannot be used: expected {NAME_RULE}")
