"""INPUT of `loupe score`: which of the kinds it is, and its items, streamed in a defined order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError, DataError, StorageLost
from service.scoring.input.archives import ARCHIVES, COMPRESSED, archive_members
from service.scoring.input.items import Fault, Item
from service.scoring.input.places import file_system, is_http, is_remote, local_path, scheme_of, storage_kept
from service.scoring.input.storages import Storages
from service.scoring.input.tables import TABLES, table_items
from service.scoring.input.walk import MAGIC, Found, glob, walk

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Names that a folder's or archive's images end with, in small or capital letters; whether the model takes the format is the model's to say."""
EXPECTED = (
    "a folder, an image, a glob, a table (.csv, .jsonl, .parquet), tar shards, a zip, or a URL of these "
    "(s3://, gs://, file://; with http:// and https:// an image or a table)"
)


@dataclass(frozen=True)
class Input:
    """What is to be scored. `items` lists it anew at each call, always in the same order."""

    items: Callable[[], Iterator[Item]]
    base: str
    """What must be there for as long as the job runs."""
    cheap: bool = True
    """Whether it may be listed a second time just to know how many there are."""


def open_input(spec: str, *, path_column: str = "path", carry: tuple[str, ...] | None = None) -> Input:
    """The input that *spec* names. Raises `DataError` if there is nothing, or nothing that can be scored."""
    place = local_path(spec) if not is_remote(spec) else spec
    # What follows the `?` of a URL says how it may be read, and is no part of its name.
    lowered = (place.partition("?")[0] if is_http(place) else place).lower()
    if lowered.endswith(COMPRESSED):
        raise DataError(f"{spec} is a compressed tar, whose members have no place of their own; decompress it, or use zip or plain tar")
    remote = is_remote(place)
    literal = is_http(place) or not MAGIC.search(place) or (not remote and Path(place).exists())
    if lowered.endswith(TABLES):
        _require_there(spec, place)
        return Input(lambda: table_items(place, path_column=path_column, carry=carry), place)
    if carry:
        raise ConfigError(f"--carry names columns, but {spec} is no table; expected {', '.join(TABLES)}")
    if is_http(place):
        if not lowered.endswith(SUFFIXES):
            raise DataError(f"{spec}: an HTTP server lists no folders, and archives are read in parts; expected an image, or a table of URLs")
        return Input(lambda: iter([Item(place, url=place)]), place)
    if lowered.endswith(ARCHIVES) and not (literal and not remote and Path(place).is_dir()):
        shards = [place] if literal else [found.path for found in glob(place)]
        if not shards:
            raise DataError(f"{spec} matches nothing; expected shards such as shards/train-*.tar")
        for shard in shards:
            _require_there(spec, shard)
        return Input(lambda: _archived(shards), shards[0], cheap=not remote)
    if not literal:
        return Input(lambda: _items(glob(place), images_only=False), place if remote else str(Path(place[: MAGIC.search(place).start()]).parent))  # type: ignore[union-attr]
    return _folder_or_image(spec, place)


def _folder_or_image(spec: str, place: str) -> Input:
    _require_there(spec, place)
    if is_remote(place):
        with storage_kept(place):
            is_folder = bool(file_system(scheme_of(place)).isdir(place))
    else:
        is_folder = Path(place).is_dir()
    if is_folder:
        return Input(lambda: _items(walk(place), images_only=True), place)
    if not place.lower().endswith(SUFFIXES):
        raise DataError(f"{spec} is neither an image by its name nor a table or archive; expected {EXPECTED}")
    return Input(lambda: iter([Item(place, url=place)]), place if is_remote(place) else str(Path(place).parent))


def _require_there(spec: str, place: str) -> None:
    if is_remote(place):
        with storage_kept(place):
            there = bool(file_system(scheme_of(place)).exists(place))
    else:
        there = Path(place).exists()
    if not there:
        raise DataError(f"{spec} does not exist; expected {EXPECTED}")


def _items(found: Iterator[Found], *, images_only: bool) -> Iterator[Item]:
    """*found* as items: every image, and every folder that could not be looked into or is called as an image."""
    for path, is_folder, error in found:
        image = path.lower().endswith(SUFFIXES)
        if error is not None:
            yield Item(path, fault=Fault("unreadable", f"folder {path} cannot be looked into: {error.strerror}"))
        elif image or not (images_only or is_folder):
            yield Item(path, url=path)


def _archived(shards: list[str]) -> Iterator[Item]:
    for shard in shards:
        try:
            yield from (item for item in archive_members(shard) if item.path == shard or _is_image(item.path[len(shard) + 1 :]))
        except DataError as error:
            if len(shards) == 1:
                raise
            yield Item(shard, fault=Fault("damaged_archive", str(error)))
        except StorageLost as error:
            cause = error.__cause__
            if len(shards) == 1 or not isinstance(cause, PermissionError) or (is_remote(shard) and Storages().doubt(shard, cause)):
                raise
            yield Item(shard, fault=Fault("permission_denied", f"{shard} may not be read: {cause}"))


def _is_image(member: str) -> bool:
    hidden = any(part.startswith(".") and part not in {".", ".."} for part in member.split("/"))
    return member.lower().endswith(SUFFIXES) and not hidden
