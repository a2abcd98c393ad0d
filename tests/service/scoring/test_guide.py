"""docs/scoring.md names the columns, statuses and options that there are."""

from __future__ import annotations

import re
from pathlib import Path

from models.errors import ScoringError, StorageLost, TooManyFailures
from service.scoring.commands import score
from service.scoring.output.columns import ALWAYS, CHOICES

GUIDE = (Path(__file__).parents[3] / "docs" / "scoring.md").read_text(encoding="utf-8")


def test_every_column_and_exit_status_is_documented():
    assert [name for name in (*CHOICES, *ALWAYS) if f"`{name}`" not in GUIDE] == []
    statuses = {
        int(number)
        for row in re.findall(r"^\| ([\d, ]+) \|", GUIDE, re.MULTILINE)
        for number in row.split(",")
    }
    assert statuses == {
        0,
        2,
        130,
        143,
        ScoringError.exit_status,
        TooManyFailures.exit_status,
        StorageLost.exit_status,
    }


def test_every_option_that_the_guide_names_exists():
    known = {option for parameter in score.params for option in parameter.opts}
    named = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", GUIDE)) - {"--help"}
    assert len(named) >= 10
    assert named <= known
