"""Tables of paths as people write them: the name of the column, and the separator of cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence

PATH_NAMES = ("path", "image", "file", "file_name", "filename", "filepath")
"""What a column with paths may be called, in any case."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
"""What may stand between cells, and what it is called."""


def separator_of(header: str, wanted: Collection[str]) -> str:
    """The separator of *header*: the one that gives a cell of *wanted*, else the most frequent."""
    names = {name.casefold() for name in wanted}
    found = (
        separator
        for separator in SEPARATORS
        if names & {cell.strip().strip('"').strip().casefold() for cell in header.split(separator)}
    )
    return next(found, max(SEPARATORS, key=header.count))


def path_names(header: Sequence[str]) -> list[str]:
    """The names in *header* that a column with paths may have: `path` alone, if it is there."""
    found = list(dict.fromkeys(name for name in header if name.casefold() in PATH_NAMES))
    best = [name for name in found if name.casefold() == PATH_NAMES[0]]
    return [name for name in best if name == PATH_NAMES[0]] or best or found
