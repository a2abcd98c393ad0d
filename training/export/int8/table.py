"""The search on the terminal: a line for each candidate as it is done."""

from __future__ import annotations

from rich.markup import escape

from training.export.int8.candidate import Candidate
from training.progress import CONSOLE

HEAD = f"{'candidate':70} {'accuracy':>8} {'points lost':>11} {'MB':>6} {'ms':>7} {'x fp32':>6}"


class Progress:
    """Prints the table's head before its first row."""

    def __init__(self) -> None:
        self._begun = False

    def show(self, candidate: Candidate) -> None:
        """Print *candidate*."""
        if not self._begun:
            CONSOLE.print(f"[bold]{HEAD}[/]")
            self._begun = True
        CONSOLE.print(row(candidate), style="" if candidate.inside else "yellow")


def row(candidate: Candidate) -> str:
    """One line of the table."""
    mark = "" if candidate.inside else "  outside the budget"
    name = escape(candidate.name)
    numbers = (
        f"{candidate.accuracy:8.2%} {candidate.loss_points:11.2f} {candidate.megabytes:6.2f}"
        f" {candidate.ms:7.2f} {candidate.speedup:6.2f}"
    )
    return f"{name:70} {numbers}{mark}"
