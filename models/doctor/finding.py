"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    level: Level
    """`error`: something that was asked for will not work. `warning`: it works, but worse than it could, or not for long."""
    check: str
    message: str
    """What is so, with the values."""
    fix: str = ""
    """The line that mends it: a command where one does; empty for `ok`."""
