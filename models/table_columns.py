"""Tables of paths as people write them: what the column is called and what stands between the
cells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

PATH_NAMES = ("path", "image", "file", "file_name", "filename", "filepath")
"""What a column with paths may be called, in any case."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
"""What may stand between cells, and what it is called."""


def separator_of(header: str, wanted: Collection[str]) -> str:
    """What stands between the cells of *header*: that with which one is called as one of *wanted*,
    else the most frequent.
    """
    names = {name.casefold() for name in wanted}
    for separator in SEPARATORS:
        if any(
            cell.strip().strip('"').strip().casefold() in names for cell in header.split(separator)
        ):
            return separator
    return max(SEPARATORS, key=header.count)


def path_names(header: Sequence[str]) -> list[str]:
    """The names in *header* that a column with paths may have: `path` alone if it is there, in just
    this case or in another.
    """
    found = list(dict.fromkeys(name for name in header if name.casefold() in PATH_NAMES))
    for best in (
        [name for name in found if name == PATH_NAMES[0]],
        [name for name in found if name.casefold() == PATH_NAMES[0]],
    ):
        if best:
            return best
    return found
