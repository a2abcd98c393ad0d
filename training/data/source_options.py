"""`--split`, `--path-column` and `--label-column`, the same for every command that takes a SOURCE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from training.data.sources.dataset import SourceOptions

Command = TypeVar("Command", bound=Callable[..., Any])

SPLIT_HELP = (
    "What the splits of SOURCE are called, where that is not as usual: train=A,val=B,test=C, or"
    " `none` if all its folders are classes."
)


def source_options(command: Command) -> Command:
    """Adds the three options to *command*."""
    return columns(
        click.option("--split", "splits", multiple=True, metavar="SPLIT=NAME,...", help=SPLIT_HELP)(
            command
        )
    )


def columns(command: Command) -> Command:
    """Adds the two options for tables to *command*."""
    for what in ("label", "path"):
        command = click.option(
            f"--{what}-column",
            metavar="NAME",
            help=f"Column of a csv: table with the {what}s, where that is not as usual.",
        )(command)
    return command


def chosen(
    splits: tuple[str, ...], path_column: str | None, label_column: str | None
) -> SourceOptions:
    """What the options say. Raises `ConfigError`."""
    from training.data.sources.dataset import SourceOptions, parse_splits

    return SourceOptions(
        split=parse_splits(splits), path_column=path_column, label_column=label_column
    )
