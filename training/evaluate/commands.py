"""`loupe evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from models.atomic_files import storage_errors
from models.messages import one_line
from training.data.source_options import SPLIT_HELP, chosen, columns
from training.options import FOLDER, Recorded, source_option


@click.command(cls=Recorded)
@click.argument("package", type=click.Path(path_type=Path, exists=True, file_okay=False))
@source_option
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    help="Folder for report.html and report.json; made if need be.",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="held-out|all|SPLIT=NAME,...",
    help=(
        f"Images to judge on: held-out or all.  [default: held-out]  {SPLIT_HELP} May be repeated."
    ),
)
@columns
def evaluate(
    package: Path,
    source: str,
    out: Path,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
) -> None:
    """Score a package on labelled images and write a report."""
    from training.evaluate.judge import judge
    from training.summary import accuracy_line, few

    options = chosen(
        tuple(split for split in splits if split not in ("held-out", "all")),
        path_column,
        label_column,
    )
    with storage_errors(out):
        figures = judge(package, source, out, whole="all" in splits, options=options)
    for line in (accuracy_line(figures), *few(figures.count, figures.split)):
        click.echo(one_line(line))
    click.echo(one_line(f"report {out / 'report.html'}"))
