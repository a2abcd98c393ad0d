"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class CheckResult:
    """One line of the doctor's report."""

    level: Level
    """`error`: something does not work. `warning`: it works badly, or not for long."""
    check: str
    message: str
    """What was found, with the values."""
    fix: str = ""
    """How to fix it, with a command if there is one; empty for `ok`."""
