"""A model that Loupe did not train, whatever it came from: one ONNX graph, and how to ask it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.importing.declared import Declared

Tensor = NDArray[Any]  # Any: models take pixels of several types
Answers = Callable[[Tensor], NDArray[np.float32]]
"""What the model's own runtime gives for a batch of its own inputs, [N,K]."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A model, and what its source says about it."""

    kind: str
    """Such as `onnx` or `huggingface`."""
    name: str
    """Of the file or folder."""
    network: str
    """What the manifest calls the architecture."""
    encoded: bytes
    """The ONNX graph in one file, as the source's own tools make it."""
    sha256: str
    """Of the file with the weights."""
    runtime: str = "ONNX Runtime"
    """What `answers` asks."""
    answers: Answers | None = None
    """None: the graph itself is the source."""
    declared: Declared = field(default_factory=Declared)
    """What the source says about its input."""
    labels: tuple[str, ...] | None = None
    """In the order of the outputs, where the source has names."""
    notes: tuple[str, ...] = ()
    """Sentences for the person who imports it."""
