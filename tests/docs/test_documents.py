"""The documents say what the code does."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest

from models import errors
from models.errors import LoupeError
from models.networks.catalogue import networks
from service.settings import PREFIX, ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docker/**/*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
    ]
)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def table_rows(document: str, first_cell: str) -> dict[str, list[str]]:
    """Rows of every table whose first cell matches the pattern *first_cell*, by that cell."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in document.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in rows if re.fullmatch(first_cell, row[0])}


def test_the_first_screen_of_the_readme_shows_the_two_commands():
    screen = "\n".join(text("README.md").splitlines()[:24])
    assert "make demo" in screen
    assert "make test" in screen


def test_every_setting_is_documented_with_its_default():
    rows = table_rows(text("docs/settings.md"), r"`LOUPE_[A-Z_]+`")
    documented = {name.strip("`"): cells[0].strip("`") for name, cells in rows.items()}
    actual = {
        PREFIX + name.upper(): str(field.default)
        for name, field in ServiceSettings.model_fields.items()
    }
    assert documented == actual


def test_every_network_is_in_the_training_guide():
    missing = [name for name in networks() if f"`{name}`" not in text("docs/training.md")]
    assert missing == []


def test_every_error_code_that_http_can_answer_is_documented_with_its_status():
    rows = table_rows(text("docs/errors.md"), r"`[a-z_]+`")
    documented = {code.strip("`"): int(cells[0]) for code, cells in rows.items()}
    classes = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, LoupeError)
    ]
    leaves = [
        error
        for error in classes
        if error is LoupeError or issubclass(error, (errors.RequestError, errors.Unavailable))
    ]
    assert documented == {
        error.code: error.status for error in leaves if error.code != "unavailable"
    }


def test_the_docstring_draws_the_whole_error_tree():
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__))
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, LoupeError)
    } - {"LoupeError"}
    assert drawn == defined


def test_every_relative_link_has_a_target():
    assert len(DOCUMENTS) >= 6
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in DOCUMENTS
        for target in re.findall(
            r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")
        )
        if not (document.parent / target).exists()
    ]
    assert broken == []


def test_every_path_in_the_architecture_exists():
    named = re.findall(
        r"`((?:models|service|training|tests)/[a-z_0-9/]*(?:\.py)?)`", text("ARCHITECTURE.md")
    )
    assert len(named) >= 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_make_prints_every_target_with_its_help():
    makefile = text("Makefile")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    described = set(re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE))
    assert described == phony
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(re.search(rf"^  {target} ", printed, re.MULTILINE) for target in phony)


@pytest.mark.parametrize("target", ["train", "evaluate", "export", "retrain", "edge", "score"])
def test_make_names_a_missing_variable(target):
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert re.search(r"(DATA|INPUT|PACKAGE|RUN) is missing; say make " + target, done.stderr)
