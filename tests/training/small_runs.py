"""The smallest run that is a run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from models.package.manifest import Manifest
from training.config import TrainConfig
from training.runs.run import Run

TINY = TrainConfig(
    network="resnet18",
    weights="none",
    image_size=32,
    resize_size=36,
    epochs=1,
    batch_size=16,
    learning_rate=1e-3,
    crop_scale_min=0.8,
    seed=3,
)
"""Trains on a hundred images in about two seconds on a core."""


class Exported(NamedTuple):
    """A run, the folder of photos that it was trained on, and its package."""

    run: Run
    photos: Path
    package: Path
    manifest: Manifest
