"""INPUT of `loupe score`: decides which kind it is, and lists its items in a defined order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError, DataError, StorageLost
from models.messages import reason
from models.pixels.endings import ENDINGS, LISTED
from service.scoring.input.archives import ARCHIVES, COMPRESSED, archive_members
from service.scoring.input.items import Fault, Item, plain_text
from service.scoring.input.places import (
    file_system,
    is_http,
    is_remote,
    local_path,
    raising_storage_lost,
    scheme_of,
)
from service.scoring.input.storages import Storages
from service.scoring.input.tables import TABLES, table_items
from service.scoring.input.walk import MAGIC, Listed, glob, walk

SUFFIXES = tuple(ENDINGS)
"""Endings of images, in small or capital letters. The model decides which formats it takes."""
MOST_ENDINGS = 50
"""Endings of other files that are counted one by one. The rest is counted together."""
NO_ENDING, OTHER_ENDINGS = "without an ending", "of other endings"
EXPECTED = (
    "a folder, an image, a glob, a table (.csv, .tsv, .jsonl, .parquet), tar shards, a zip, or a"
    " URL of these (s3://, gs://, file://; with http:// and https:// an image or a table)"
)


@dataclass(frozen=True)
class Input:
    """What is to be scored."""

    listed: Callable[[Counter[str]], Iterator[Item]]
    base: str
    """What must exist as long as the job runs."""
    cheap: bool = True
    """Whether it may be listed a second time just to count."""

    def items(self, not_images: Counter[str] | None = None) -> Iterator[Item]:
        """All items, listed again at each call, always in the same order.

        *not_images* counts the files that are no images, by ending.
        """
        return self.listed(Counter() if not_images is None else not_images)


def open_input(
    spec: str, *, path_column: str | None = None, carry: tuple[str, ...] | None = None
) -> Input:
    """The input that *spec* names; *path_column* None stands for the usual names.

    Raises `DataError` if there is nothing, or nothing that can be scored.
    """
    place = local_path(spec)
    remote, is_url = is_remote(place), is_http(place)
    # The query of a URL is no part of the file's name.
    name = (place.partition("?")[0] if is_url else place).lower()
    if name.endswith(COMPRESSED):
        raise DataError(
            f"{spec} is a compressed tar, whose members cannot be read in place; decompress it, or"
            " use zip or plain tar"
        )
    if name.endswith(TABLES):
        _is_folder(spec, place)
        return Input(lambda _: table_items(place, path_column=path_column, carry=carry), place)
    if carry:
        raise ConfigError(
            f"--carry names columns, but {spec} is not a table; expected {', '.join(TABLES)}"
        )
    if is_url and not name.endswith(SUFFIXES):
        raise DataError(
            f"{spec}: an HTTP server lists no folders, and archives are read in parts; expected an"
            " image, or a table of URLs"
        )
    wildcard = MAGIC.search(place)
    if wildcard and not is_url and (remote or not Path(place).exists()):
        if name.endswith(ARCHIVES):
            return _archives(spec, [found.path for found in glob(place)])
        base = place if remote else str(Path(place[: wildcard.start()]).parent)
        return Input(lambda not_images: _items(glob(place), not_images, images_only=False), base)
    if not is_url and _is_folder(spec, place):
        return Input(lambda not_images: _items(walk(place), not_images, images_only=True), place)
    if name.endswith(ARCHIVES):
        return _archives(spec, [place])
    if not name.endswith(SUFFIXES):
        raise DataError(
            f"{spec} is neither an image by its name nor a table or archive; expected {EXPECTED}."
            f" Images end in {LISTED}"
        )
    base = place if remote else str(Path(place).parent)
    return Input(lambda _: iter([Item(place, url=place)]), base)


def _archives(spec: str, shards: list[str]) -> Input:
    if not shards:
        raise DataError(f"{spec} matches nothing; expected shards such as shards/train-*.tar")
    for shard in shards:
        _is_folder(spec, shard)
    return Input(
        lambda not_images: _archived(shards, not_images), shards[0], cheap=not is_remote(spec)
    )


def _is_folder(spec: str, place: str) -> bool:
    """Whether *place* is a folder. Raises `DataError` if it does not exist."""
    if is_remote(place):
        with raising_storage_lost(place):
            system = file_system(scheme_of(place))
            there = bool(system.exists(place))
            folder = there and not is_http(place) and bool(system.isdir(place))
    else:
        there, folder = Path(place).exists(), Path(place).is_dir()
    if not there:
        raise DataError(f"{spec} does not exist; expected {EXPECTED}")
    return folder


def _items(
    found: Iterator[Listed], not_images: Counter[str], *, images_only: bool
) -> Iterator[Item]:
    """*found* as items: every image, and a fault for each folder or link that cannot be read."""
    for path, is_folder, error in found:
        image = path.lower().endswith(SUFFIXES)
        if error is not None and (is_folder or not image):
            what = f"folder {path} cannot be read" if is_folder else f"{path} leads nowhere"
            yield Item(path, fault=Fault("unreadable", f"{what}: {reason(error)}"))
        elif image or not (images_only or is_folder):
            yield Item(path, url=path)
        elif not is_folder:
            _count_skipped(path, not_images)


def _count_skipped(path: str, not_images: Counter[str]) -> None:
    ending = plain_text(os.path.splitext(path)[1].lower()) or NO_ENDING  # noqa: PTH122 - *path* is text
    not_images[
        ending if ending in not_images or len(not_images) < MOST_ENDINGS else OTHER_ENDINGS
    ] += 1


def skipped_text(not_images: Mapping[str, int]) -> str:
    """Text such as `3 files are not images: 2 .txt, 1 .mp4`; empty if *not_images* is."""
    count = sum(not_images.values())
    if not count:
        return ""
    kinds = ", ".join(
        f"{number:,} {ending}"
        for ending, number in sorted(not_images.items(), key=lambda entry: (-entry[1], entry[0]))
    )
    return (
        f"{count:,} files are not images: {kinds}"
        if count > 1
        else f"1 file is not an image: {kinds.removeprefix('1 ')}"
    )


def _archived(shards: list[str], not_images: Counter[str]) -> Iterator[Item]:
    for shard in shards:
        try:
            for item in archive_members(shard):
                member = item.path[len(shard) + 1 :]
                if item.path == shard or (
                    member.lower().endswith(SUFFIXES) and not _is_hidden(member)
                ):
                    yield item
                elif not _is_hidden(member):
                    _count_skipped(member, not_images)
        except DataError as error:
            if len(shards) == 1:
                raise
            yield Item(shard, fault=Fault("damaged_archive", str(error)))
        except StorageLost as error:
            cause = error.__cause__
            if (
                len(shards) == 1
                or not isinstance(cause, PermissionError)
                or (is_remote(shard) and Storages().error_of(shard, cause))
            ):
                raise
            yield Item(shard, fault=Fault("permission_denied", f"{shard} may not be read: {cause}"))


def _is_hidden(member: str) -> bool:
    return any(part.startswith(".") and part not in {".", ".."} for part in member.split("/"))
