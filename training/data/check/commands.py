"""`loupe data check`. What the command needs is imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.errors import DataError
from models.messages import one_line, os_error_text
from training.data.source_options import chosen, source_options

if TYPE_CHECKING:
    from training.data.check.findings import Finding
    from training.data.check.survey import Survey

COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
GROUPS_SHOWN = 3
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def data() -> None:
    """What a data set holds, and what is wrong with it."""


@data.command()
@click.argument("source")
@source_options
@click.option(
    "--html",
    "html_file",
    type=_FILE,
    metavar="FILE",
    help="Write a page with thumbnails: copies side by side.",
)
@click.option(
    "--json",
    "json_file",
    type=_FILE,
    metavar="FILE",
    help="Write every finding with all its images.",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
def check(
    source: str,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
    html_file: Path | None,
    json_file: Path | None,
    strict: bool,
) -> None:
    """Find what is wrong with the images and labels of SOURCE.

    SOURCE is digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a bare path.
    It finds images that cannot be read or are cut short, copies and near-copies (across splits
    above all), one image under two labels, every file and folder that is not used with the reason,
    labels that differ only in case or white space, extensions that lie, empty and small classes,
    imbalance, and images that are tiny, turned, blank, dark, bright or blurred.

    Exit status: 0 if there is no error, 1 if there is one (with --strict: or a warning), or if
    SOURCE cannot be found.
    """
    from training.data.check.survey import as_json, page, survey

    result = survey(source, chosen(splits, path_column, label_column))
    bad = {"error", "warning"} if strict else {"error"}
    status = int(any(finding.level in bad for finding in result.findings))
    _print(result)
    if html_file is not None:
        _write(html_file, page(result))
    if json_file is not None:
        _write(json_file, json.dumps(as_json(result, status=status), indent=1) + "\n")
    # Not click's own exit, which the top-level command's standalone_mode=False would turn into a
    # return value.
    raise SystemExit(status)


def _print(result: Survey) -> None:
    """Print a table of all findings, then what to do about the bad ones, one line each."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from training.data.layout.names import number

    click.echo(
        one_line(
            f"{result.listing.source}: {number(result.seen, 'image')},"
            f" {number(result.listing.labels, 'class', 'classes')}"
        )
    )
    if not result.findings:
        click.echo("Nothing was found.")
        return
    table = Table("", "check", "found", box=SIMPLE_HEAD)
    for finding in result.findings:
        # File names are text, not markup.
        table.add_row(
            Text(finding.level, style=COLOURS[finding.level]),
            Text(finding.check),
            Text(one_line(finding.message)),
        )
    Console(highlight=False, emoji=False).print(table)
    bad = [finding for finding in result.findings if finding.level != "info"]
    click.echo("To repair:" if bad else "Nothing is wrong.")
    for finding in bad:
        click.echo(one_line(f"  {finding.level}, {finding.check}: {finding.advice}"))
        for line in _examples(result, finding):
            click.echo(one_line(f"    {line}"))


def _examples(result: Survey, finding: Finding) -> list[str]:
    lines = [
        " = ".join(result.seen[place].example.name for place in group) + (note and f": {note}")
        for group, note in finding.noted[:GROUPS_SHOWN]
    ]
    more = len(finding.groups) - GROUPS_SHOWN
    return [*lines, f"and {more:,} more"] if more > 0 else lines


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {os_error_text(error, path)}") from error
    click.echo(one_line(f"written: {path}"))
