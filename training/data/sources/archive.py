"""One shard, a plain tar file: its images, read in place, and the labels beside them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from shlex import quote

from models.errors import DataError
from models.files import parse_json
from models.pixels.endings import ENDINGS
from training.data.layout.names import LABEL_NAMES, litter
from training.data.layout.tree import Parts, Tree, joined, sort_in
from training.data.sources.dataset import Example

_CHUNK = 1 << 20
LABEL_SUFFIXES = (".cls", ".json", ".txt")
LABEL_BYTES_MAX = 1024
"""A longer `.txt` describes the image and is no class name."""
JSON_BYTES_MAX = 1 << 20


def members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Every member of *shard*, in order.

    Raises `DataError` if it is cut short, damaged or compressed, or if anything follows its end.
    """
    try:
        # "r:" takes no compression: a member of a compressed tar has no place of its own that it
        # could be read from.
        with tarfile.open(shard, "r:") as archive:
            size = shard.stat().st_size
            for member in archive:
                if member.isreg() and member.offset_data + member.size > size:
                    raise DataError(
                        f"shard {shard} is cut short in {member.name}: copy the complete file"
                    )
                yield member
            _require_end(shard, archive.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(
            f"shard {shard} cannot be read as a tar file without compression: {error}"
        ) from error
    except OSError as error:
        raise DataError(f"shard {shard}: {error.strerror or error}") from error


def _require_end(shard: Path, offset: int) -> None:
    """Raises `DataError` unless the archive ends at *offset*, and the file with it.

    tarfile stops silently at a header that it cannot read, and at the end of the first of two
    archives in one file.
    """
    with shard.open("rb") as stream:
        stream.seek(offset)
        # Writers end an archive with blocks of zeros. Without them, whole members may be missing.
        if not (chunk := stream.read(tarfile.BLOCKSIZE)):
            raise DataError(
                f"shard {shard} ends without the mark of an archive's end. If it was cut short,"
                " copy the complete file; if it is complete, and its writer left the mark out, add"
                f" it: head -c 1024 /dev/zero >> {quote(str(shard))}"
            )
        what = "is damaged" if chunk.strip(b"\0") else "continues after the end of its archive"
        while chunk:
            if chunk.strip(b"\0"):
                raise DataError(
                    f"shard {shard} {what} at byte {offset}: copy it again, or pack one archive for"
                    " each file"
                )
            chunk = stream.read(_CHUNK)


def read_shard(tree: Tree, shard: Path, name: str) -> None:
    """Take every member of *shard* into *tree*; *name* stands before their names."""
    files = _files(tree, shard, name)
    labels: dict[Parts, str | None] = {}
    label_files: set[Parts | None] = set()
    for parts in files:
        if PurePosixPath(parts[-1]).suffix.lower() in ENDINGS:
            labels[parts], label_file = _label(files, parts)
            label_files.add(label_file)
    for parts, content in files.items():
        if parts in labels and _is_beside(files, parts, labels):
            tree.add_unused(parts, "beside the image of the same key", content=content)
        elif parts not in label_files:
            sort_in(tree, parts, content, own_label=labels.get(parts))


def _files(tree: Tree, shard: Path, name: str) -> Mapping[Parts, Example]:
    """The plain files of *shard*. Whatever else it holds is named in *tree*."""
    files: dict[Parts, Example] = {}
    folders: set[Parts] = set()
    above: set[Parts] = {()}
    for member in members(shard):
        parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
        above.update(parts[:end] for end in range(1, len(parts)))
        if parts and (reason := _reason(member, parts)):
            tree.add_unused((name, *parts), reason, folder=member.isdir())
        elif member.isdir():
            folders.add(parts)
        elif parts:
            if parts in files:
                tree.add_unused((name, *parts), "replaced by a later member of the same name")
            span = member.offset_data, member.size
            files[parts] = Example(joined((name, *parts)), label=0, path=shard, span=span)
    for parts in sorted(folders - above):
        tree.add_unused((name, *parts), "empty", folder=True)
    return files


def _reason(member: tarfile.TarInfo, parts: Parts) -> str | None:
    """Why *member* is not used, whatever its name ends with."""
    if found := next(filter(None, map(litter, parts)), None):
        return found
    if member.issym() or member.islnk():
        return "linked inside an archive"
    plain = member.isdir() or (member.isreg() and not member.issparse())
    return None if plain else "not a regular file"


def _label(files: Mapping[Parts, Example], parts: Parts) -> tuple[str | None, Parts | None]:
    """The label that stands beside the image *parts*, and the member that gives it."""
    *folder, name = parts
    for base in dict.fromkeys((name.rpartition(".")[0], name.partition(".")[0])):
        for suffix in LABEL_SUFFIXES:
            label_file = (*folder, f"{base}{suffix}")
            if label_file in files and (label := _written(files[label_file], suffix)):
                return label, label_file
    return None, None


def _written(member: Example, suffix: str) -> str | None:
    """The label that *member* holds: its text, or a field of its JSON."""
    assert member.span is not None
    if member.span[1] > (JSON_BYTES_MAX if suffix == ".json" else LABEL_BYTES_MAX):
        return None
    text = member.read().decode("utf-8-sig", errors="backslashreplace").strip()
    if suffix != ".json":
        return text
    try:
        found = parse_json(text)
    except ValueError:
        return None
    named = found.items() if isinstance(found, dict) else ()
    fields = {key.strip().casefold(): value for key, value in named}
    value = next((fields[key] for key in (*LABEL_NAMES, "cls") if key in fields), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip()


def _is_beside(
    files: Mapping[Parts, Example], parts: Parts, labels: Mapping[Parts, str | None]
) -> bool:
    """Whether another image has the class of the key, as `a.png` beside `a.mask.png`."""
    *folder, name = parts
    key = name.partition(".")[0]
    own, shared = (
        any((*folder, f"{base}{suffix}") in files for suffix in LABEL_SUFFIXES)
        for base in (name.rpartition(".")[0], key)
    )
    plain = any((*folder, f"{key}{ending}") in labels for ending in ENDINGS)
    return name.count(".") > 1 and not own and shared and plain
