"""The search on the terminal: a line for each candidate as it is done."""

from __future__ import annotations

from rich.markup import escape

from training.export.int8.candidate import Candidate
from training.progress import CONSOLE

HEAD = f"{'candidate':70} {'accuracy':>8} {'points lost':>11} {'MB':>6} {'ms':>7} {'x fp32':>6}"


class SearchProgress:
    """Prints the table's head before its first row."""

    def __init__(self) -> None:
        self._begun = False

    def show(self, candidate: Candidate) -> None:
        """Print *candidate*."""
        if not self._begun:
            CONSOLE.print(f"[bold]{HEAD}[/]")
            self._begun = True
        row = (
            f"{escape(candidate.name):70} {candidate.accuracy:8.2%} {candidate.loss_points:11.2f}"
            f" {candidate.megabytes:6.2f} {candidate.ms:7.2f} {candidate.speedup:6.2f}"
        )
        inside = candidate.inside
        CONSOLE.print(
            row if inside else f"{row}  outside the budget", style="" if inside else "yellow"
        )
