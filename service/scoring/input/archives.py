"""Images in tar shards and zip files, read in place. Nothing is extracted."""

from __future__ import annotations

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from models.errors import DataError
from service.scoring.input.items import Fault, Item, plain_text
from service.scoring.input.places import open_place, raising_storage_lost

ARCHIVES = (".tar", ".zip")
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    OverflowError,
)
BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, struct.error)
"""What Python's modules raise for damaged archives."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def archive_members(place: str) -> Iterator[Item]:
    """An item for each file in the archive at *place*, in the archive's order.

    Damage becomes an item with a fault. Raises `DataError` if the file is no such archive.
    """
    with raising_storage_lost(place), open_place(place) as stream:
        if place.lower().endswith(".zip"):
            try:
                archive = zipfile.ZipFile(stream)
            except BROKEN_ZIP as error:
                raise DataError(
                    f"{place} cannot be read as a zip file: {error}. Copy the complete file"
                ) from error
            # The directory of a zip is read whole, about half a kilobyte for each member. Two
            # members may have the same name.
            for at, info in enumerate(archive.infolist()):
                if not info.is_dir():
                    yield Item(plain_text(f"{place}/{info.filename}"), url=place, member=at)
            return
        try:
            # "r:" refuses compression: members of a compressed tar cannot be read in place.
            shard = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - it has no more than the stream, which is closed
        except BROKEN_TAR as error:
            raise DataError(
                f"{place} cannot be read as a tar file without compression: {error}"
            ) from error
        yield from _tar_members(shard, stream, place)


def _tar_members(shard: tarfile.TarFile, stream: IO[bytes], place: str) -> Iterator[Item]:
    while True:
        try:
            member = shard.next()
        except BROKEN_TAR as error:
            yield Item(
                place,
                fault=Fault(
                    "damaged_archive",
                    f"{place} is damaged at byte {shard.offset}, the rest is lost: {error}",
                ),
            )
            return
        if member is None:
            # tarfile ends at anything that is no header. A complete shard ends with zeros.
            stream.seek(shard.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield Item(
                    place,
                    fault=Fault(
                        "damaged_archive",
                        f"{place} is damaged or cut short at byte {shard.offset}: copy the complete"
                        " file",
                    ),
                )
            return
        # tarfile keeps every member that it has read, so memory would grow with the shard.
        shard.members.clear()  # type: ignore[attr-defined]  # public, but not in typeshed
        path = f"{place}/{member.name}"
        if member.isreg() and not member.issparse():
            yield Item(path, url=place, offset=member.offset_data, size=member.size)
        elif not member.isdir():
            what = (
                f"a link to {member.linkname}"
                if member.islnk() or member.issym()
                else "a sparse file or a device"
            )
            yield Item(
                path,
                fault=Fault(
                    "unreadable",
                    f"{member.name} of {place} is {what}; pack files (tar --dereference"
                    " --hard-dereference)",
                ),
            )
