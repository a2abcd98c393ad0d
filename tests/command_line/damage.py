"""Every way to damage a file that a command reads beside the one that its arguments name."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.command_line.bad_values import contents


def ways() -> Mapping[str, Callable[[Path], None]]:
    """What is done to a file, by its name."""
    return {
        "gone": lambda path: None,
        "a folder": Path.mkdir,
        "a folder with things": _folder,
        "a dangling link": lambda path: path.symlink_to("gone"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a file": lambda path: path.symlink_to("/etc/passwd"),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a pipe": os.mkfifo,
        "a socket": _socket,
        "unreadable": lambda path: path.touch(0o000),
        "without end": _sparse,
    } | {what: _writer(content) for what, content in contents().items()}


def damage(path: Path, way: str) -> None:
    """Put the damage *way* in the place of the file *path*."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    ways()[way](path)


def _writer(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**40)
