"""Reads small files whole. Pipes, devices and files that are too large are refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

LIMIT_BYTES = 256 * 2**20
"""Far more than a manifest, a history or a list of a million images has."""


def read_file(path: Path) -> bytes:
    """The content of the regular file *path*.

    Raises `OSError` that names it, also for what is no regular file or is too large.
    """
    # O_NONBLOCK: opening a named pipe would wait for its writer forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_size > LIMIT_BYTES:
            other = errno.EISDIR if stat.S_ISDIR(state.st_mode) else errno.ENXIO
            wrong = errno.EFBIG if stat.S_ISREG(state.st_mode) else other
            raise OSError(wrong, os.strerror(wrong), str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(LIMIT_BYTES)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """The text in the file *path*.

    Raises `OSError`, or `ValueError` without the path if it is not UTF-8.
    """
    return read_file(path).decode("utf-8")


def parse_json(text: str | bytes) -> Any:  # Any: whatever JSON can hold
    """What *text* says. Raises `ValueError` if it is no JSON, no UTF-8, or nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
