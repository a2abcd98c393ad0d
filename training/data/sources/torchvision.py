"""`torchvision:NAME[:ROOT]`: a data set of torchvision's, with torchvision's class names.

With ROOT the files are read from there and nothing is ever downloaded. Without it they are kept in
`artifacts/datasets`, and downloaded when they are not there. If the data set keeps images as files,
these files are read, and other files beside them are unused. Otherwise each image is encoded as PNG
when it is read.

torchvision itself unpickles the two CIFAR sets, after it has compared the files with their
published MD5: take those from its own download alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from models.errors import DataError
from models.pixels.endings import ENDINGS, what_is_missing
from training.data.layout.names import class_order
from training.data.layout.splits import WHOLE
from training.data.layout.tree import walk
from training.data.sources.dataset import Example, Unused
from training.data.sources.listing import Listing, by_split

DEFAULT_ROOT = Path("artifacts/datasets")

_Arguments = Mapping[str, Any]
_BY_FLAG: Mapping[str, _Arguments] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[str, _Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Mapping[str, _Arguments] = {
    "train": {"split": "train"},
    "val": {"split": "val"},
    "test": {"split": "test"},
}
SETS: Mapping[str, Mapping[str, _Arguments]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), _BY_FLAG),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "SVHN"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "RenderedSST2"), _THREE),
    "Country211": {
        "train": {"split": "train"},
        "val": {"split": "valid"},
        "test": {"split": "test"},
    },
    "EuroSAT": {WHOLE: {}},
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "SUN397": {WHOLE: {}},
}
"""Name -> our split -> the arguments that give it."""


def _encoded(dataset: Any, index: int) -> bytes:
    """Image *index* of *dataset* as PNG. Raises `DataError` if its file went away or is broken."""
    stream = io.BytesIO()
    try:
        dataset[index][0].save(stream, "PNG", compress_level=1)
    # What Pillow raises for a broken file depends on its format.
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"image {index} of {type(dataset).__name__}: {error}") from error
    return stream.getvalue()


def list_torchvision(rest: str) -> Listing:
    """What torchvision's data set *rest*, `NAME` or `NAME:ROOT`, holds.

    Raises `DataError` if there is none, or its files cannot be had.
    """
    name, _, root = rest.partition(":")
    if name not in SETS:
        raise DataError(f"torchvision:{name}: no such data set; valid: {', '.join(sorted(SETS))}")
    opened = {split: _open(name, root, arguments) for split, arguments in SETS[name].items()}
    names = class_names(next(iter(opened.values())))
    labels = class_order(names)
    return Listing(
        source=f"torchvision:{rest}",
        place=f"torchvision:{rest}",
        labels=labels,
        splits=by_split(
            (
                (example, split, names[example.label])
                for split, dataset in opened.items()
                for example in examples(dataset, prefix=split)
            ),
            labels,
        ),
        unused=_beside([path for dataset in opened.values() for path in _paths(dataset)]),
    )


def _beside(paths: list[Path]) -> tuple[Unused, ...]:
    """What lies in the folder that all of *paths* have in common, and is not among them."""
    if not paths:
        return ()
    listed, tree = set(paths), walk(Path(os.path.commonpath([path.parent for path in paths])))
    others = [
        *tree.unused,
        *(Unused(i.content.name, "not listed by torchvision", i.content) for i in tree.images),
    ]
    return tuple(one for one in others if one.content is None or one.content.path not in listed)


def examples(dataset: Any, *, prefix: str) -> tuple[Example, ...]:
    """All images of *dataset*, a map-style data set of (PIL image, label), not decoded yet.

    Their names begin with *prefix*.
    """
    targets = _targets(dataset)
    return tuple(
        Example(name=f"{prefix}/{path.parent.name}/{path.name}", label=target, path=path)
        if (ending := path.suffix.lower()) in ENDINGS and not what_is_missing(ending)
        else Example(
            name=f"{prefix}/{index:06d}.png", label=target, reader=partial(_encoded, dataset, index)
        )
        for index, (target, path) in enumerate(
            zip(targets, _paths(dataset) or [Path()] * len(targets), strict=True)
        )
    )


def class_names(dataset: Any) -> tuple[str, ...]:
    """The classes of *dataset* in its own order; numbers where it has no names.

    Of several names of one class the first is taken.
    """
    names: Sequence[str | tuple[str, ...]] | None = getattr(dataset, "classes", None)
    if names is None:
        return tuple(str(label) for label in range(max(_targets(dataset)) + 1))
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _open(name: str, root: str, arguments: _Arguments) -> Any:
    from torchvision import datasets

    make = getattr(datasets, name)
    folder = Path(root) if root else DEFAULT_ROOT
    try:
        return make(root=folder, **arguments)
    except (OSError, RuntimeError) as error:
        if root:
            raise DataError(
                f"torchvision:{name}:{root}: {root} does not hold the files of {name} ({error});"
                f" torchvision:{name} would download them"
            ) from error
    try:
        return make(root=folder, download=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"torchvision:{name} cannot be downloaded to {folder}: {error}; without a network,"
            f" bring the files and say torchvision:{name}:ROOT"
        ) from error


def _paths(dataset: Any) -> list[Path]:
    """Where the images lie; empty if *dataset* keeps no files.

    torchvision has no public name for it but `samples`.
    """
    for attribute in ("_image_files", "_images"):
        if hasattr(dataset, attribute):
            return [Path(path) for path in getattr(dataset, attribute)]
    return [Path(path) for path, _ in _samples(dataset)]


def _samples(dataset: Any) -> list[tuple[str, int]]:
    return getattr(dataset, "samples", None) or getattr(dataset, "_samples", None) or []


def _targets(dataset: Any) -> list[int]:
    for attribute in ("targets", "_labels", "labels"):
        if hasattr(dataset, attribute):
            return [int(label) for label in getattr(dataset, attribute)]
    return [int(label) for _, label in _samples(dataset)] or [
        int(dataset[index][1]) for index in range(len(dataset))
    ]
