"""One plain tar file: its members, read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from models.errors import DataError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class TarMember:
    """A file inside a plain tar file; a call reads it."""

    shard: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Its bytes. Raises `DataError` if the shard went away."""
        try:
            with self.shard.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise DataError(f"{self.shard}: {error.strerror}") from error


def members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Every member of *shard*, in order.

    Raises `DataError` if it is cut short, damaged or compressed, or if anything stands behind its
    end: nothing is lost without a word.
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
    """Tarfile ends in silence at a header that it cannot read, and at the end of the first of two
    archives in one file.
    """
    with shard.open("rb") as stream:
        stream.seek(offset)
        at = offset
        # Every writer that is told to close its archive ends it with blocks of zeros: without,
        # whole members may be gone.
        if shard.stat().st_size <= offset:
            raise DataError(
                f"shard {shard} ends without the mark of an archive's end. If it was cut short,"
                " copy the complete file; if it is complete, and its writer left the mark out, add"
                f" it: head -c 1024 /dev/zero >> {quote(str(shard))}"
            )
        while chunk := stream.read(_CHUNK):
            if chunk.strip(b"\0"):
                what = (
                    "is damaged"
                    if at == offset and chunk[: tarfile.BLOCKSIZE].strip(b"\0")
                    else "goes on behind the end of its archive"
                )
                raise DataError(
                    f"shard {shard} {what} at byte {offset}: copy it again, or pack one archive for"
                    " each file"
                )
            at += len(chunk)
