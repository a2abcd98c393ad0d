"""Names as people see them, and the one order of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence, Sized

LABEL_NAMES = ("label", "class", "category", "choice")
"""Names, in any case, of the column or JSON field with the class."""
SHOWN = 5
"""Names or rows that a message lists before it says how many more there are."""


def printable(name: str) -> str:
    r"""*name* as text: control characters, and bytes that are no UTF-8, become `\xNN`."""
    if name.isprintable():
        return name
    return "".join(
        _escaped(character)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in name
    )


def class_order(names: Collection[str]) -> tuple[str, ...]:
    """Class names in the order that the model will use, whatever the source.

    Names that are all whole numbers are sorted by value: 0, 1, 2, 10. Otherwise all names are
    sorted as text, so that `class 10` comes before `class 2`. Run and package record the order.
    """
    if all(name.isascii() and name.isdecimal() for name in names):
        # By length and digits and not by int(), which refuses more than 4,300 of them.
        return tuple(
            sorted(set(names), key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
        )
    return tuple(sorted(set(names)))


def few_of(names: Sequence[object]) -> str:
    """The first of *names*, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def number(things: Sized, one: str, several: str = "") -> str:
    """The number of *things*, such as `1 image` or `1,240 images`; *several* is their plural."""
    return f"{len(things):,} {one if len(things) == 1 else several or one + 's'}"


def alike(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of *labels* that differ only in case, in Unicode form or in outer white space."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(unicodedata.normalize("NFC", label.strip()).casefold(), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def litter(name: str) -> str | None:
    """The reason to skip a file of this *name*, made by systems or editors; None for others."""
    if name.startswith("._") or name in {".DS_Store", "__MACOSX"}:
        return "left by macOS"
    if name.casefold() in {"thumbs.db", "desktop.ini"}:
        return "left by Windows"
    return "hidden" if name.startswith(".") else None


def _escaped(character: str) -> str:
    code = ord(character)
    # Python has such a byte as a surrogate.
    code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
