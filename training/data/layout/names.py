"""Names as people see them, and the one order of classes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Sequence, Sized

LABEL_NAMES = ("label", "class", "category", "choice")
"""What a column, or a field of a JSON file, with the class may be called, in any case."""
SHOWN = 5
"""Names or rows that a message lists before it says how many more there are."""


def printable(name: str) -> str:
    r"""*name* as text for messages and files: bytes that are no UTF-8, and control characters,
    become `\xNN`.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace") if not _is_text(name) else name
    if text.isprintable():
        return text
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Zl", "Zp")
        else _escaped(character)
        for character in text
    )


def class_order(names: Collection[str]) -> tuple[str, ...]:
    """Class names in the order that the model will use, whatever the source.

    The run and the package record it.

    Names that are all whole numbers stand in the order of their values: 0, 1, 2, 10. Otherwise all
    names are compared as text, character by character, so that `class 10` stands before `class 2`.
    """
    if all(name.isascii() and name.isdecimal() for name in names):
        return tuple(sorted(set(names), key=_value))
    return tuple(sorted(set(names)))


def few_of(names: Sequence[object]) -> str:
    """The first of *names*, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def number(things: Sized, one: str, several: str = "") -> str:
    """How many *things* there are, such as `1 image` or `1,240 images`; *several* is what more than
    one are called.
    """
    return f"{len(things):,} {one if len(things) == 1 else several or one + 's'}"


def alike(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of *labels* that differ only in case, in Unicode form or in outer white space."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(unicodedata.normalize("NFC", label.strip()).casefold(), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def litter(name: str) -> str | None:
    """What a file or folder called *name* is if it is never part of the data: what systems and
    editors leave behind.
    """
    if name.startswith("._") or name in {".DS_Store", "__MACOSX"}:
        return "left by macOS"
    if name.casefold() in {"thumbs.db", "desktop.ini"}:
        return "left by Windows"
    return "hidden" if name.startswith(".") else None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def _value(name: str) -> tuple[int, str, str]:
    # By length and digits and not by int(), which refuses more than 4,300 of them.
    digits = name.lstrip("0")
    return len(digits), digits, name
