"""The search on the terminal: two lines for each candidate as it is done."""

from __future__ import annotations

from rich.markup import escape

from training.export.int8.candidate import Candidate
from training.progress import CONSOLE


def show(candidate: Candidate) -> None:
    """Print *candidate* in lines of at most 80 characters."""
    inside = candidate.inside
    style = "" if inside else "yellow"
    CONSOLE.print(escape(candidate.name), style=style)
    CONSOLE.print(
        f"  accuracy {candidate.accuracy:.2%}, {-candidate.loss_points:+.2f} points against fp32"
        f"{'' if inside else ', outside the budget'};"
        f" {candidate.megabytes:.1f} MB, {candidate.ms:.1f} ms",
        style=style,
    )
