"""Batches of images: augmented ones for training, and those of validation and evaluation.

`models.pixels.preprocess` decodes all of them, as it does in the service.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Sampler, WeightedRandomSampler
from torchvision.transforms import v2

from models.errors import DataError, RequestError
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD
from models.package.manifest import PreprocessSpec
from models.pixels.geometry import fit
from models.pixels.preprocess import CROP_RATIO_MIN, decode, to_pixels
from training.config import TrainConfig
from training.data.quarantine import Quarantine
from training.data.sources.dataset import Example
from training.distributed import ALONE, Processes

SEEDS_APART = 1_000_003
"""Between the seeds of two processes: more than a process has decoding workers."""
CROP_RATIO = (CROP_RATIO_MIN, 1.0 / CROP_RATIO_MIN)
"""Aspect ratios of random crops. Source: torchvision's RandomResizedCrop."""

ERASED = [round(255.0 * mean) for mean in IMAGENET_MEAN]
"""RGB of an erased rectangle: 0 once the image is normalised."""

Batch = tuple[Tensor, Tensor, Tensor, dict[int, str]]
"""Images `uint8 [N,3,H,W]`, their labels and places in the data set, both `int64 [N]`, and broken
images that were replaced: place -> reason."""


class _Batches(Sampler[list[int]]):
    """The share of one process of each batch, as places of images. All get equally many."""

    def __init__(
        self, order: Sampler[int], *, images: int, batch_size: int, processes: Processes
    ) -> None:
        self._order, self._size, self._processes = order, batch_size, processes
        full, rest = divmod(images, batch_size)
        # A last share of one image would break batch normalisation.
        self._count = full + (rest >= 2 * processes.count)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        rank, count = self._processes.rank, self._processes.count
        for start in range(0, self._count * self._size, self._size):
            chosen = order[start : start + self._size]
            yield chosen[rank : len(chosen) - len(chosen) % count : count]


def _reseed(rank: int, worker: int) -> None:
    """Give a decoding worker its own random state: those of all processes would be alike."""
    del worker  # torch has added it to the seed already
    torch.manual_seed(torch.initial_seed() + rank * SEEDS_APART)


class TrainImages(torch.utils.data.Dataset[Batch]):
    """An item is one image of a `Batch`. The next image replaces one that is broken."""

    def __init__(
        self,
        examples: Sequence[Example],
        config: TrainConfig,
        spec: PreprocessSpec,
        quarantine: Quarantine,
    ) -> None:
        self._examples = examples
        self._spec = spec
        self._quarantine = quarantine
        self._augment = _augmentation(config)
        self._crop_share = config.crop_scale_min if config.crop_scale_min < 1.0 else None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Batch:
        found: dict[int, str] = {}
        for place in itertools.chain(range(index, len(self)), range(index)):
            example = self._examples[place]
            if self._quarantine.holds("train", example.name):
                continue
            try:
                image = decode(example.read(), self._spec, crop_share=self._crop_share)
            except (RequestError, DataError) as error:
                found[place] = str(error)
                # The run ends as soon as the training process hears of them; an error raised here
                # would reach it as a page of traceback.
                if len(found) > self._quarantine.room:
                    return (
                        self._augment(Image.new("RGB", self._spec.crop[::-1])),
                        torch.tensor(0),
                        torch.tensor(index),
                        found,
                    )
                continue
            if self._crop_share is None:
                image = Image.fromarray(fit(image, self._spec))
            return self._augment(image), torch.tensor(example.label), torch.tensor(place), found
        raise DataError("none of the training images can be read any longer")


def _collate(items: list[Batch]) -> Batch:
    images, labels, places, found = zip(*items, strict=True)
    return (
        torch.stack(images),
        torch.stack(labels),
        torch.stack(places),
        {place: why for one in found for place, why in one.items()},
    )


def train_loader(
    examples: Sequence[Example],
    config: TrainConfig,
    spec: PreprocessSpec,
    *,
    quarantine: Quarantine | None = None,
    processes: Processes = ALONE,
) -> DataLoader[Batch]:
    """Batches in random order, the same for the same seed and state of the loader's generator.

    A batch of `batch_size` is that of all *processes* together; each takes a share. The caller puts
    what a batch names as broken into *quarantine*.
    """
    generator = torch.Generator().manual_seed(config.seed)
    order = sampler(examples, balanced=config.balanced_sampling, generator=generator)
    size = min(config.batch_size, len(examples))
    return DataLoader(
        TrainImages(
            examples, config, spec, quarantine or Quarantine("training", images=len(examples))
        ),
        batch_sampler=_Batches(order, images=len(examples), batch_size=size, processes=processes),
        collate_fn=_collate,
        # Workers start again in each epoch: living ones keep random states that no checkpoint
        # can hold.
        num_workers=config.decode_workers,
        worker_init_fn=partial(_reseed, processes.rank),
        # Copies to a GPU then need not wait.
        pin_memory=torch.cuda.is_available(),
        generator=generator,
    )


def sampler(
    examples: Sequence[Example], *, balanced: bool, generator: torch.Generator
) -> Sampler[int]:
    """Places of *examples* in random order, each once.

    If *balanced*, they are drawn with replacement, each class as often as any other.
    """
    if not balanced:
        return RandomSampler(range(len(examples)), generator=generator)
    counts = Counter(example.label for example in examples)
    return WeightedRandomSampler(
        [1.0 / counts[example.label] for example in examples], len(examples), generator=generator
    )


def evaluation_batches(
    examples: Sequence[Example], spec: PreprocessSpec, batch_size: int
) -> Iterator[NDArray[np.uint8]]:
    """`uint8 [N,H,W,3]` in order, exactly as the service will see the images.

    Raises `DataError` naming an image that does not decode.
    """
    for pixels_NHWC, _ in readable_batches(examples, spec, batch_size):
        yield pixels_NHWC


def readable_batches(
    examples: Sequence[Example],
    spec: PreprocessSpec,
    batch_size: int,
    *,
    split: str = "",
    quarantine: Quarantine | None = None,
) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    """As `evaluation_batches`, with the place of each image.

    With a *quarantine*, the images of *split* that cannot be read go there instead of raising.
    """
    for start in range(0, len(examples), batch_size):
        found: dict[int, NDArray[np.uint8]] = {}
        for place, example in enumerate(examples[start : start + batch_size], start):
            if quarantine is not None and quarantine.holds(split, example.name):
                continue
            try:
                found[place] = to_pixels(example.read(), spec)
            except (RequestError, DataError) as error:
                if quarantine is None:
                    raise DataError(f"{example.name}: {error}") from error
                quarantine.add(split, example.name, str(error))
        if found:
            yield np.stack(list(found.values())), list(found)


def stand_ins(readable_N: Tensor) -> Tensor:
    """For each place itself, or the next place that is true in *readable_N*, `bool [N]`.

    After the last place comes the first. Raises `DataError` if none is true.
    """
    places = readable_N.nonzero().flatten()
    if not len(places):
        raise DataError("none of the training images can be read any longer")
    return places[torch.searchsorted(places, torch.arange(len(readable_N))) % len(places)]


def limited(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """At most *most* examples, as evenly over the classes as can be; all for 0.

    Those of a class are spread evenly over its own, in their order. Neighbours by name are often a
    burst of one scene, and the first ones might be nothing else.
    """
    if most == 0 or len(examples) <= most:
        return examples
    label = attrgetter("label")
    classes = [
        list(found) for _, found in itertools.groupby(sorted(examples, key=label), key=label)
    ]
    ranks = itertools.zip_longest(*(range(len(found)) for found in classes))
    turns = [place for rank in ranks for place, turn in enumerate(rank) if turn is not None][:most]
    taken = Counter(turns)
    spread = [
        iter([found[i * len(found) // taken[place]] for i in range(taken[place])])
        for place, found in enumerate(classes)
    ]
    return [next(spread[place]) for place in turns]


def _augmentation(config: TrainConfig) -> v2.Transform:
    side, scale = config.image_size, (config.crop_scale_min, 1.0)
    crop = v2.RandomResizedCrop(side, scale=scale, ratio=CROP_RATIO, antialias=True)
    policy = v2.TrivialAugmentWide() if config.augment == "trivial" else v2.RandAugment()
    return v2.Compose(
        [
            *([crop] if config.crop_scale_min < 1.0 else []),
            *([v2.RandomHorizontalFlip()] if config.horizontal_flip else []),
            *([policy] if config.augment != "none" else []),
            v2.PILToTensor(),
            *([v2.RandomErasing(config.erasing, value=ERASED)] if config.erasing > 0.0 else []),
        ]
    )


def normalised(images_N3HW: Tensor) -> Tensor:
    """`float32 [N,3,H,W]` with ImageNet's statistics, from `uint8`, as the exported graph does."""
    mean, std = _statistics(images_N3HW.device)
    # In place: each step would otherwise write another 600 kB an image.
    return images_N3HW.float().div_(255.0).sub_(mean).div_(std)


def as_pixels(images_N3HW: Tensor) -> NDArray[np.uint8]:
    """`uint8 [N,H,W,3]` from normalised images: what `normalised` was given, rounded."""
    mean, std = _statistics(images_N3HW.device)
    pixels_N3HW = ((images_N3HW.float() * std + mean) * 255.0).round().clamp(0.0, 255.0)
    return np.ascontiguousarray(pixels_N3HW.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, std


def network_input(pixels_NHWC: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images of evaluation as the network takes them, on *device*."""
    return normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).to(device))
