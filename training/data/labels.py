"""Classes by name: two lists of the same classes in another order say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from training.data.source import Dataset, Example


def aligned(dataset: Dataset, labels: tuple[str, ...]) -> Dataset:
    """*dataset* with *labels* as its classes, by name; without the images of other classes."""
    if dataset.labels == labels:
        return dataset
    splits = {
        split: relabelled(examples, dataset.labels, labels)
        for split, examples in dataset.splits.items()
    }
    return dataclasses.replace(dataset, labels=labels, splits=splits)


def relabelled(
    examples: Sequence[Example], old: Sequence[str], new: Sequence[str]
) -> tuple[Example, ...]:
    """*examples*, whose labels are places in *old*, with the places of the same names in *new*;
    those that *new* has not are left out.
    """
    places = {name: place for place, name in enumerate(new)}
    return tuple(
        dataclasses.replace(e, label=places[old[e.label]])
        for e in examples
        if old[e.label] in places
    )


def missing(there: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names of *wanted* that are not *there*, in order."""
    known = set(there)
    return [name for name in wanted if name not in known]
