"""A folder as a zip and back: the same files always give the same bytes."""

from __future__ import annotations

import lzma
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
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError),
    RuntimeError,  # encrypted, or compressed in a way that Python does not know
)
"""What unpacking a damaged zip raises."""


def write_zip(folder: Path, out: Path) -> None:
    """Write every file below *folder* into the new zip *out*, in name order.

    Raises `ExportError` if it cannot be written.
    """
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
    with tempfile.TemporaryDirectory(prefix="loupe-bundle-") as place:
        try:
            # zipfile itself keeps the files inside the folder, and none of them is run.
            with zipfile.ZipFile(bundle) as archive:
                archive.extractall(place)
        except OSError as error:
            raise PackageTampered(f"{bundle} cannot be unpacked: {os_error_text(error)}") from error
        except DAMAGE as error:
            raise PackageTampered(
                f"{bundle} is not a valid zip ({error}); copy the bundle again"
            ) from error
        yield Path(place)
