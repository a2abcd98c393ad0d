"""docs/training.md names the commands, settings and files that exist."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from models.errors import ConfigError
from models.store.store import Store
from tests.docs.guides import steps
from tests.training.photos import in_memory
from tests.training.small_runs import TINY
from training.commands import train as command
from training.config import replace_fields
from training.fit.loop import train
from training.recipes import RECIPES, recipe
from training.retrain import retrain

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
COMMANDS = [
    step.text.partition("loupe train ")[2]
    for step in steps("docs/training.md")
    if "loupe train " in step.text
]


def test_every_training_command_of_the_guide_is_valid():
    assert len(COMMANDS) >= 5
    for arguments in COMMANDS:
        context = command.make_context("train", shlex.split(arguments))
        replace_fields(
            recipe(context.params["recipe_name"] or "finetune"), context.params["assignments"]
        )


def test_every_setting_that_the_guide_names_is_a_field_of_a_run():
    named = re.findall(r"--set ([a-z]\w+(?:=[\w./-]+))", GUIDE)
    assert len(named) >= 8
    for assignment in named:
        replace_fields(TINY, [assignment.replace("=PACKAGE", "=folder")])


def test_the_guides_list_the_recipes_that_were_measured_and_no_others():
    section = GUIDE.partition("## Choose a recipe")[2].partition("\n## ")[0]
    chosen = re.findall(r"^\| [^`|]+ \| `(\w+)`", section, re.MULTILINE)
    figures = r"^\| `(\w+)` \| [^|]+ \| [^|]*\d % \([^|]+\) \| \d+ s"
    rows = re.findall(figures, section, re.MULTILINE)
    [listed] = re.findall(r"measured recipes are (.*)\.", (ROOT / "README.md").read_text("utf-8"))
    texts = {name: " ".join((make.__doc__ or "").split()) for name, make in RECIPES.items()}
    measured = [name for name, text in texts.items() if "Not measured" not in text]
    assert len(measured) >= 4
    assert (
        sorted(rows) == sorted(chosen) == sorted(measured) == sorted(re.findall(r"`(\w+)`", listed))
    )


def test_a_run_leaves_what_the_guide_lists(tmp_path):
    listed = re.findall(r"^    ([\w.]+)/?  ", GUIDE, re.MULTILINE)
    run = train(
        dataclasses.replace(TINY, network="lenet5"),
        in_memory(train=6, held_out=2),
        tmp_path / "run",
    )
    assert sorted(path.name for path in run.path.iterdir()) == sorted(listed)


def test_retraining_under_torchrun_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError,
        match=(
            r"^retrain runs in one process; under torchrun, use `loupe train`, then `loupe"
            r" export` and"
        ),
    ):
        retrain(TINY, "digits", name="x", store=Store(tmp_path), artifacts=tmp_path)
