"""Images in tar shards and zip files, read in place. Nothing is extracted."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO

from models.errors import DataError
from service.scoring.items import Fault, Item
from service.scoring.places import open_place, storage_kept

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def archive_members(place: str) -> Iterator[Item]:
    """A row for each plain file in the archive at *place*, in the archive's order; a row with a fault where it is damaged.

    Raises `DataError` if it is no such archive at all.
    """
    with storage_kept(place), open_place(place) as stream:
        if place.lower().endswith(".zip"):
            try:
                archive = zipfile.ZipFile(stream)
            except zipfile.BadZipFile as error:
                raise DataError(f"{place} cannot be read as a zip file: {error}. Copy the complete file") from error
            # A zip's directory stands at its end and is read whole: about half a kilobyte a member.
            for info in archive.infolist():
                if not info.is_dir():
                    yield Item(f"{place}/{info.filename}", url=place, member=info.filename)
            return
        try:
            # "r:" takes no compression: a member of a compressed tar has no place of its own that it could be read from.
            shard = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - it has no more than the stream, which is closed
        except tarfile.TarError as error:
            raise DataError(f"{place} cannot be read as a tar file without compression: {error}") from error
        yield from _tar_members(shard, stream, place)


def _tar_members(shard: tarfile.TarFile, stream: IO[bytes], place: str) -> Iterator[Item]:
    while True:
        try:
            member = shard.next()
        except tarfile.TarError as error:
            yield Item(place, fault=Fault("damaged_archive", f"{place} is damaged at byte {shard.offset}, the rest is lost: {error}"))
            return
        if member is None:
            # tarfile takes whatever is no header for the end; a whole shard ends with blocks of zeros.
            stream.seek(shard.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield Item(place, fault=Fault("damaged_archive", f"{place} is damaged or cut short at byte {shard.offset}: copy the complete file"))
            return
        # tarfile keeps every member that it has seen: memory would grow with the shard.
        shard.members.clear()  # type: ignore[attr-defined]  # public, but not in typeshed
        if member.isreg() and not member.issparse():
            yield Item(f"{place}/{member.name}", url=place, offset=member.offset_data, size=member.size)
