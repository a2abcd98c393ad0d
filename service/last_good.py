"""Which version of each model this server answers with: for a worker that starts while an alias means one that cannot be opened.

Without it, one worker that is started again after a bad promotion would refuse every request while the others go on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "last_good.json"


class LastGood:
    """Kept in *folder*, which the workers of one server share; None keeps nothing."""

    def __init__(self, folder: str | None) -> None:
        self._path = None if folder is None else Path(folder) / FILE

    def versions(self) -> dict[str, int]:
        """Version by model name, of whichever worker changed last."""
        if self._path is None:
            return {}
        try:
            found: dict[str, int] = json.loads(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return {}
        return found

    def keep(self, versions: dict[str, int]) -> None:
        """Write *versions* down, at once as readers see it."""
        if self._path is not None and versions != self.versions():
            temporary = self._path.with_name(f"{FILE}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(versions), encoding="ascii")
            temporary.replace(self._path)
