"""The members of one shard: images with the labels that stand beside them, and the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tarfile import TarInfo

from models.pixels.endings import ENDINGS
from training.data.layout.names import LABEL_NAMES, litter, printable
from training.data.layout.tree import Parts, Tree, sort_in
from training.data.sources.archive import TarMember, members
from training.data.sources.dataset import Example

LABEL_SUFFIXES = (".cls", ".json", ".txt")
LABEL_BYTES_MAX = 1024
"""A `.txt` with more is a text about the image and no class name."""
JSON_BYTES_MAX = 1 << 20

_Files = Mapping[Parts, TarMember]


def read_shard(tree: Tree, shard: Path, name: str) -> None:
    """Take every member of *shard* into *tree*; *name* stands before their names."""
    files = _files(tree, shard, name)
    labels: dict[Parts, str | None] = {}
    givers: set[Parts] = set()
    for parts in files:
        if PurePosixPath(parts[-1]).suffix.lower() in ENDINGS:
            labels[parts], giver = _label(files, parts)
            givers |= {giver} if giver else set()
    for parts, member in files.items():
        content = Example(name=printable(f"{name}/{'/'.join(parts)}"), label=0, reader=member)
        if parts in labels and _is_beside(files, parts, labels):
            tree.leave(parts, "beside the image of the same key", content=content)
        elif parts not in givers:
            sort_in(tree, parts, content, own=labels.get(parts))


def _files(tree: Tree, shard: Path, name: str) -> dict[Parts, TarMember]:
    """The plain files of *shard*. Whatever else it holds is named in *tree*."""
    files: dict[Parts, TarMember] = {}
    folders: set[Parts] = set()
    above: set[Parts] = set()
    for member in members(shard):
        parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
        if not parts:
            continue
        above.update(parts[:end] for end in range(1, len(parts)))
        if reason := _reason(member, parts):
            tree.leave((name, *parts), reason, folder=member.isdir())
        elif member.isdir():
            folders.add(parts)
        else:
            if parts in files:
                tree.leave((name, *parts), "replaced by a later member of the same name")
            files[parts] = TarMember(shard, member.offset_data, member.size)
    for parts in sorted(folders - above):
        tree.leave((name, *parts), "empty", folder=True)
    return files


def _reason(member: TarInfo, parts: Parts) -> str | None:
    if found := next((reason for part in parts if (reason := litter(part))), None):
        return found
    if member.issym() or member.islnk():
        return "linked inside an archive"
    return (
        None
        if member.isdir() or (member.isreg() and not member.issparse())
        else "not a regular file"
    )


def _label(files: _Files, parts: Parts) -> tuple[str | None, Parts | None]:
    """The label that stands beside the image *parts*, and the member that gives it."""
    *folder, name = parts
    for base in dict.fromkeys((name.rpartition(".")[0], name.partition(".")[0])):
        for suffix in LABEL_SUFFIXES:
            giver = (*folder, f"{base}{suffix}")
            if giver in files and (label := _written(files[giver], suffix)):
                return label, giver
    return None, None


def _written(member: TarMember, suffix: str) -> str | None:
    if member.size > (JSON_BYTES_MAX if suffix == ".json" else LABEL_BYTES_MAX):
        return None
    text = member().decode("utf-8-sig", errors="backslashreplace").strip()
    return _in_json(text) if suffix == ".json" else text or None


def _in_json(text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields = {key.strip().casefold(): value for key, value in found.items()}
    value = next((fields[key] for key in (*LABEL_NAMES, "cls") if key in fields), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def _is_beside(files: _Files, parts: Parts, labels: Mapping[Parts, str | None]) -> bool:
    """`a.mask.png` beside `a.png` and `a.cls`: only the image that is called as its key has the
    class.
    """
    *folder, name = parts
    key = name.partition(".")[0]
    own, shared = (
        any((*folder, f"{base}{suffix}") in files for suffix in LABEL_SUFFIXES)
        for base in (name.rpartition(".")[0], key)
    )
    plain = any((*folder, f"{key}{ending}") in labels for ending in ENDINGS)
    return name.count(".") > 1 and not own and shared and plain
