"""What a person says about a source where its own names do not say it: `--split`, `--path-column`,
`--label-column`.
"""

from __future__ import annotations

from collections.abc import Iterable

from models.errors import ConfigError
from models.package.manifest import StrictRecord
from training.data.layout.splits import SPLIT_NAMES

NO_SPLITS = "none"


class SourceOptions(StrictRecord):
    """How to read a source. A run records it, so that its data is found again."""

    split: dict[str, str] | None = None
    """Split -> the name that the source has for it; empty: nothing is a split; None: splits are known by their usual names."""
    path_column: str | None = None
    """Of a table."""
    label_column: str | None = None
    """Of a table."""


def parse_splits(texts: Iterable[str]) -> dict[str, str] | None:
    """*texts* such as `train=Training,val=Testing`, or `none`; None if there are none.

    Raises `ConfigError`.
    """
    texts = tuple(texts)
    if not texts:
        return None
    if texts == (NO_SPLITS,):
        return {}
    found: dict[str, str] = {}
    for piece in ",".join(texts).split(","):
        split, equals, name = (part.strip() for part in piece.partition("="))
        if split in found:
            raise ConfigError(
                f"--split {','.join(texts)}: {split} is named twice; one folder is one split: put"
                " what belongs to it into one"
            )
        if split not in SPLIT_NAMES or not equals or not name:
            raise ConfigError(
                f"--split {','.join(texts)}: cannot use {piece!r}; expected `none`, or pairs such"
                " as train=Training,val=Testing"
            )
        found[split] = name
    return found
