"""Training images as batches of tensors: decoded once by `models.preprocess`, then augmented."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from models.errors import DataError, RequestError
from models.manifest import PreprocessSpec
from models.preprocess import decode, fit, to_pixels
from training.config import TrainConfig
from training.data import Example

CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)
"""Aspect ratios of random crops. Source: torchvision's RandomResizedCrop."""


class TrainImages(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Augmented `uint8 [3,H,W]` and the label, an `int64` scalar, by index."""

    def __init__(self, examples: Sequence[Example], config: TrainConfig, spec: PreprocessSpec) -> None:
        self._examples = examples
        self._spec = spec
        self._augment = _augmentation(config)
        self._random_crop = config.crop_scale_min < 1.0

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        example = self._examples[index]
        with _named(example):
            image = decode(example.read(), self._spec, scale=False)
        if not self._random_crop:
            image = Image.fromarray(fit(image, self._spec))
        return self._augment(image), torch.tensor(example.label)


def train_loader(examples: Sequence[Example], config: TrainConfig, spec: PreprocessSpec) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches `(uint8 [N,3,H,W], int64 [N])`; the same order and augmentation for the same seed."""
    chosen = limited(examples, config.max_train_images)
    size = min(config.batch_size, len(chosen))
    return DataLoader(
        TrainImages(chosen, config, spec),
        batch_size=size,
        shuffle=True,
        # A last batch of one image would break batch normalisation.
        drop_last=len(chosen) % size == 1,
        num_workers=config.decode_workers,
        persistent_workers=config.decode_workers > 0,
        generator=torch.Generator().manual_seed(config.seed),
    )


def evaluation_batches(examples: Sequence[Example], spec: PreprocessSpec, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """`uint8 [N,H,W,3]` in order, exactly as the service will see the images. Raises `DataError` naming an image that does not decode."""
    for start in range(0, len(examples), batch_size):
        yield np.stack([_pixels(example, spec) for example in examples[start : start + batch_size]])


def limited(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """At most *most* examples, as evenly over the classes as can be; all for 0."""
    if most == 0 or len(examples) <= most:
        return examples
    by_class: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        by_class[example.label].append(example)
    ranked = sorted((rank, label) for label, members in by_class.items() for rank in range(len(members)))
    return [by_class[label][rank] for rank, label in ranked[:most]]


def _pixels(example: Example, spec: PreprocessSpec) -> NDArray[np.uint8]:
    with _named(example):
        return to_pixels(example.read(), spec)


@contextmanager
def _named(example: Example) -> Iterator[None]:
    """An image that was readable when the data was checked may not be any longer: then the message says which one."""
    try:
        yield
    except RequestError as error:
        raise DataError(f"{example.name}: {error}") from error


def _augmentation(config: TrainConfig) -> v2.Transform:
    transforms: list[v2.Transform] = []
    if config.crop_scale_min < 1.0:
        transforms.append(v2.RandomResizedCrop(config.image_size, scale=(config.crop_scale_min, 1.0), ratio=CROP_RATIO, antialias=True))
    if config.horizontal_flip:
        transforms.append(v2.RandomHorizontalFlip())
    return v2.Compose([*transforms, v2.PILToTensor()])
