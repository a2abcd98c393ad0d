"""`--split`, `--path-column` and `--label-column`, the options of each command with a SOURCE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from models.errors import ConfigError

if TYPE_CHECKING:
    from training.data.sources.dataset import SourceOptions

Command = TypeVar("Command", bound=Callable[..., Any])

SPLIT_HELP = (
    "What the splits of SOURCE are called, where that is not as usual: train=A,val=B,test=C, or"
    " `none` if all its folders are classes."
)


def source_options(command: Command) -> Command:
    """*command* with the three options."""
    return columns(
        click.option("--split", "splits", multiple=True, metavar="SPLIT=NAME,...", help=SPLIT_HELP)(
            command
        )
    )


def columns(command: Command) -> Command:
    """*command* with the two options for tables."""
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
    """The values of the three options. Raises `ConfigError`."""
    from training.data.sources.dataset import SourceOptions

    return SourceOptions(
        split=parse_splits(splits), path_column=path_column, label_column=label_column
    )


def parse_splits(texts: Iterable[str]) -> dict[str, str] | None:
    """*texts* such as `train=Training,val=Testing`, or `none`; None if there are none.

    Raises `ConfigError`.
    """
    from training.data.layout.splits import SPLIT_NAMES

    given = ",".join(texts)
    if given in ("", "none"):
        return {} if given else None
    found: dict[str, str] = {}
    for piece in given.split(","):
        split, equals, name = (part.strip() for part in piece.partition("="))
        if split in found:
            raise ConfigError(
                f"--split {given}: {split} is named twice; one folder is one split: put"
                " what belongs to it into one"
            )
        if split not in SPLIT_NAMES or not equals or not name:
            raise ConfigError(
                f"--split {given}: cannot use {piece!r}; expected `none`, or pairs such"
                " as train=Training,val=Testing"
            )
        found[split] = name
    return found
