"""How the network was trained: its epochs, and what augmented training images look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from models.package.manifest import PreprocessSpec
from training.config import TrainConfig
from training.data.loader import TrainImages, limited
from training.data.quarantine import Quarantine
from training.data.source import Example

AUGMENTED_IMAGES = 12


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of the run."""

    epoch: int
    """From 1, through all phases."""
    phase: str
    train_loss: float
    val_loss: float | None
    """None in runs of older releases."""
    val_accuracy: float


@dataclass(frozen=True, kw_only=True)
class History:
    """The way to the weights in the package."""

    epochs: tuple[Epoch, ...]
    kept: int
    """The epoch whose weights are in the package."""
    augmentation: str
    """In words: what happens to a training image."""
    augmented: tuple[Image.Image, ...] = ()
    """Training images as the network saw them. Empty if only the head was trained."""

    def as_json(self) -> dict[str, object]:
        """The content of `training` in the report's JSON."""
        return {
            "kept": self.kept,
            "augmentation": self.augmentation,
            "epochs": [vars(epoch) for epoch in self.epochs],
        }


def augmented_images(
    examples: Sequence[Example], config: TrainConfig, spec: PreprocessSpec
) -> tuple[Image.Image, ...]:
    """A few of *examples* as fine-tuning by *config* sees them; none if nothing is fine-tuned.

    The same config gives the same pictures. No other random state is touched.
    """
    if not config.epochs:
        return ()
    chosen = limited(examples, AUGMENTED_IMAGES)
    images = TrainImages(chosen, config, spec, Quarantine("report", images=len(chosen), most=1.0))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        pixels = [images[place][0].permute(1, 2, 0).numpy() for place in range(len(chosen))]
    return tuple(Image.fromarray(pixels_HWC) for pixels_HWC in pixels)


def augmentation_of(config: TrainConfig) -> str:
    """What happens to a training image, in words."""
    parts = ["mirrored half of the time"] if config.horizontal_flip else []
    if config.epochs:
        if config.crop_scale_min < 1.0:
            parts.insert(0, f"cropped to {config.crop_scale_min:.0%} or more of the area")
        parts += [f"the policy {config.augment}"] if config.augment != "none" else []
        parts += [f"a rectangle erased in {config.erasing:.0%}"] if config.erasing else []
        mixed = [name for name in ("mixup", "cutmix") if getattr(config, name)]
        parts += [f"then mixed with another ({' or '.join(mixed)}), not shown"] if mixed else []
    return ", ".join(parts) or "nothing: each image as it is"
