"""Text for people: escaped foreign text, advice on errors of the operating system, tables."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence

FULL = (errno.ENOSPC, errno.EDQUOT)

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, marks that change the direction of text, and surrogates.

A surrogate stands for a byte of a file name that is not UTF-8.
"""

ADVICE = {
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOTDIR: "a part of this path is a file where a folder is expected; check the path",
    errno.EISDIR: "this is a folder where a file is expected; name a file",
    errno.EEXIST: "this exists already; choose another name, or remove it",
    errno.ENOTEMPTY: "this folder is not empty; choose another name, or remove it",
    errno.ENAMETOOLONG: "the name is too long; a file name has at most 255 bytes and a path 4,095",
    errno.ELOOP: "symbolic links lead back to themselves; name the file that is meant",
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EDQUOT: "this user's share of the disk is full; free some space and try again",
    errno.EFBIG: (
        "the file is too large for what it is taken for, for the file system, or for `ulimit -f`;"
        " check the path"
    ),
    errno.EROFS: "the file system is read-only; choose a place that can be written",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n 65536` and try again",
    errno.ENFILE: "the machine has too many files open; close other programs and try again",
    errno.ENOMEM: "the machine is out of memory; close other programs and try again",
    errno.ENXIO: "this is a named pipe, a socket or a device; expected a regular file",
    errno.EIO: (
        "the disk reports an error; check its cable, its network and `dmesg`, or use a copy"
        " elsewhere"
    ),
    errno.ESTALE: "the network file system lost this file; mount it again",
}
"""Error number -> what it means, and what to do about it."""


def one_line(text: str) -> str:
    r"""*text* as one line. Characters that a terminal would obey are escaped, such as `\\n`."""
    return _UNPRINTABLE.sub(
        lambda found: found.group().encode("unicode_escape").decode("ascii"), text
    )


def label_lines(labels: Iterable[str]) -> str:
    """*labels* as the content of `labels.txt`: one line for each, in order."""
    return "".join(f"{one_line(' '.join(label.split()))}\n" for label in labels)


def reason(error: OSError) -> str:
    """Why the operating system refused, and what to do. It does not name the file."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied to user {os.geteuid()}; run as the owner, or change the mode of the"
            " file and of the folders above it"
        )
    known = ADVICE.get(error.errno or 0)
    return known or f"{error.strerror or error}; put that right and try again"


def os_error_text(error: OSError, path: object = None) -> str:
    """`path: reason` of *error*; without *path*, the file that the error names, if any."""
    # A failed copy names its source first, which a full disk has nothing to do with.
    full = error.errno in FULL and error.filename2 is not None
    where = path if path is not None else error.filename2 if full else error.filename
    # Some errors name a file by its descriptor, which tells a person nothing.
    if where is None or isinstance(where, int):
        return reason(error)
    return f"{os.fsdecode(where) if isinstance(where, bytes) else where}: {reason(error)}"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Print a table whose cells are text and not markup; *colours* gives the style of a cell."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # Folded and not cut: a name that is cut cannot be copied.
    headings = [Column(name, overflow="fold") for name in columns]
    table = Table(*headings, box=SIMPLE_HEAD, show_header=any(columns))
    for row in rows:
        table.add_row(*(Text(one_line(cell), style=(colours or {}).get(cell, "")) for cell in row))
    Console(highlight=False, emoji=False).print(table)
