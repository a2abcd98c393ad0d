"""`predict`: what a network says about images.

Validation, calibration, export, evaluation and promotion call it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.package.manifest import PreprocessSpec
from training.data.loader import readable_batches
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.progress import steps

BATCH = 32
Outputs = Mapping[str, NDArray[Any]]  # Any: a network may give numbers of any type
Runner = Callable[[NDArray[np.uint8], Sequence[str]], Outputs]
"""A network: the outputs asked for, by name, for pixels `uint8 [N,H,W,3]`, as
`models.runtime.session.Model.run` gives them."""


def predict(
    run: Runner,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    outputs: Sequence[str],
    *,
    title: str,
    batch_size: int = BATCH,
    split: str = "",
    quarantine: Quarantine | None = None,
) -> tuple[list[int], Outputs]:
    """The places of the images among *examples*, and the *outputs* of *run* for them, by name.

    With a *quarantine*, images of *split* that cannot be read go there and have no place; without,
    they raise `DataError`. *title* stands before the progress bar.
    """
    batches = readable_batches(examples, spec, batch_size, split=split, quarantine=quarantine)
    total = -(-len(examples) // batch_size)
    places: list[int] = []
    parts: list[Outputs] = []
    for pixels_NHWC, found in steps(batches, total=total, title=title, images=batch_size):
        places += found
        parts.append(run(pixels_NHWC, outputs))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in outputs if parts}
    return places, joined
