"""Which version of each model this server answers with: for a worker that starts while an alias
means one that cannot be opened.

Without it, one worker that is started again after a bad promotion would refuse every request while
the others go on.
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


class LastGood:
    """Kept in *folder*, which the workers of one server share; None keeps nothing."""

    def __init__(self, folder: str | None) -> None:
        self._path = None if folder is None else Path(folder) / FILE

    def versions(self) -> dict[str, int]:
        """Version by model name, of whichever worker changed last; none if the file is not there or
        damaged.
        """
        if self._path is None:
            return {}
        try:
            return _Versions.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.warning("%s is not used: %s", self._path, error)
            return {}

    def keep(self, versions: dict[str, int]) -> None:
        """Write *versions* down, at once as readers see it.

        A full disk takes nothing but this from a worker that serves.
        """
        if self._path is None or versions == self.versions():
            return
        temporary = self._path.with_name(f"{FILE}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(versions), encoding="ascii")
            temporary.replace(self._path)
        except OSError as error:
            log.warning(
                "a worker that is started again may not know version %s: %s cannot be written: %s",
                versions,
                self._path,
                error,
            )
