"""A folder as a zip and back.

The same files give the same bytes, whenever and wherever they are zipped.
"""

from __future__ import annotations

import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import ExportError, PackageTampered
from models.messages import os_error_text

MADE = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip: the earliest that the format knows."""
MODE = 0o100644


def write_zip(folder: Path, out: Path) -> None:
    """Write every file below *folder* into the new zip *out*, in name order.

    Raises `ExportError` if *out* exists or cannot be written.
    """
    if out.exists():
        raise ExportError(
            f"{out} exists already; a bundle is never overwritten: choose another --out, or"
            " remove it"
        )
    part = out.with_name(f".{out.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=MADE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = MODE << 16
                entry.create_system = 3
                archive.writestr(entry, path.read_bytes())
        part.rename(out)
    except OSError as error:
        raise ExportError(f"cannot write bundle {os_error_text(error, out)}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def opened(bundle: Path) -> Iterator[Path]:
    """The folder that holds *bundle*'s files: itself, or a temporary one for a zip.

    Raises `PackageTampered` for a damaged zip.
    """
    if bundle.is_dir():
        yield bundle
        return
    place = Path(tempfile.mkdtemp(prefix="loupe-bundle-"))
    try:
        _extract(bundle, place)
        yield place
    finally:
        shutil.rmtree(place)


def _extract(bundle: Path, place: Path) -> None:
    """Put the files of the zip *bundle* into the folder *place*; zipfile itself keeps their names
    inside, and none is run.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            archive.extractall(place)
    except OSError as error:
        raise PackageTampered(f"{bundle} cannot be unpacked: {os_error_text(error)}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
        ValueError,
        OverflowError,
    ) as error:
        # RuntimeError: encrypted, or compressed in a way that Python does not know.
        raise PackageTampered(
            f"{bundle} is no sound zip ({error}); copy the bundle again"
        ) from error
