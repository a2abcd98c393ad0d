"""The version of each model that this server answers with, in a file that its workers share.

A worker may start while an alias means a version that cannot be opened. Without this file it would
refuse every request while the other workers continue.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

FILE = "last_good.json"

log = logging.getLogger("loupe")

_Versions = TypeAdapter(dict[str, int])


def read_versions(folder: str | None) -> dict[str, int]:
    """Version by model name, from the file in *folder*; empty if it is missing or damaged."""
    if folder is None:
        return {}
    path = Path(folder) / FILE
    try:
        return _Versions.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("%s is not used: %s", path, error)
        return {}


def keep_versions(folder: str | None, versions: dict[str, int]) -> None:
    """Replace the file in *folder*, if there is one to keep. A full disk costs only a warning."""
    if folder is None or versions == read_versions(folder):
        return
    temporary = Path(folder) / f"{FILE}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(versions), encoding="ascii")
        temporary.replace(Path(folder) / FILE)
    except OSError as error:
        log.warning(
            "a worker that is started again may not know version %s: %s cannot be written: %s",
            versions,
            Path(folder) / FILE,
            error,
        )
