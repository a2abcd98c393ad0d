"""What a run has before its first step: images that can be read, a network with its weights, a
loss. The same for a sweep of rates.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.errors import ConfigError, DataError
from models.machine import keep_freed_memory, threads_per_worker
from models.networks.catalogue import build
from models.networks.network import Network
from models.networks.weights import LoadedWeights, load_weights
from models.package.manifest import DataFingerprint, PreprocessSpec
from models.pixels.preprocess import DEFAULT_DCT_MARGIN
from training.config import TrainConfig
from training.data.inventory import Entry, Inventory, Missing, find_again, take_inventory
from training.data.loader import SEEDS_APART, limited
from training.data.quarantine import Quarantine
from training.data.source import Dataset, Example, usage
from training.distributed import Processes, share_of_batch
from training.fit.auto_batch import find_batch_size
from training.fit.optimisation import frozen_modules
from training.fit.teacher import Teacher, open_teacher
from training.progress import CONSOLE, shown


@dataclass(frozen=True)
class Prepared:
    """All that training needs, on the device of this process."""

    config: TrainConfig
    """As it was asked for, with the batch size found where it was to be found."""
    dataset: Dataset
    """Without unreadable images."""
    inventory: Inventory | None
    """What the run has of images, and had when it was begun; the main process alone knows it."""
    unreadable: dict[str, str]
    """From the start: name -> reason."""
    data: DataFingerprint
    """Of the images that the run was begun with."""
    quarantine: Quarantine
    network: Network
    loaded: LoadedWeights
    teacher: Teacher | None
    processes: Processes

    @property
    def examples(self) -> Sequence[Example]:
        """The training images."""
        return limited(self.dataset.splits["train"], self.config.max_train_images)

    def loss(self) -> nn.Module:
        """The mean loss over a batch, of logits and labels."""
        weights = (
            class_weights(self.examples, len(self.dataset.labels))
            if self.config.class_weights
            else None
        )
        return nn.CrossEntropyLoss(weight=weights, label_smoothing=self.config.label_smoothing).to(
            self.processes.device
        )


def prepare(
    config: TrainConfig, dataset: Dataset, processes: Processes, *, begun: Sequence[Entry] = ()
) -> Prepared:
    """What a run by *config* on *dataset* begins with, or goes on with if it was *begun* with those
    images.

    Raises `ConfigError` or `DataError`, before anything is written.
    """
    CONSOLE.quiet = not processes.main
    torch.manual_seed(config.seed)
    # torch counts the cores of the machine, not those that the cgroup leaves us; too many threads
    # wait for each other at every barrier.
    torch.set_num_threads(threads_per_worker(processes.local_count))
    if processes.device.type == "cpu":
        keep_freed_memory()
    if config.batch_size:
        share_of_batch(config.batch_size, processes)
    images = _readable(dataset, config, processes, begun)
    dataset = images.dataset
    network = build(config.network, num_classes=len(dataset.labels), image_size=config.image_size)
    frozen_modules(network, config.freeze)
    with processes.one_fate():
        # The main process downloads, and the others find the file.
        loaded = load_weights(network, config.network, config.weights) if processes.main else None
    loaded = loaded or load_weights(network, config.network, config.weights)
    teacher = open_teacher(config, dataset.labels, processes)
    network = network.to(processes.device)
    if processes.count > 1 and processes.device.type == "cuda":
        # Statistics over the batch of all processes, as one process would have them; there is no
        # such layer on a CPU.
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    found = Prepared(
        config,
        dataset,
        images.inventory,
        images.unreadable,
        images.data,
        images.quarantine,
        network,
        loaded,
        teacher,
        processes,
    )
    if not config.batch_size:
        found = dataclasses.replace(found, config=_with_batch_size(found))
    if len(found.examples) < 2 * processes.count:
        raise ConfigError(
            f"{len(found.examples)} training images for {processes.count} processes; expected 2 or"
            " more for each"
        )
    _announce(found)
    if not processes.main:
        # Other augmentations than the main process's; the weights are its own already.
        torch.manual_seed(config.seed + processes.rank * SEEDS_APART)
    return found


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """How the images of a run are prepared, in evaluation and ever after."""
    return PreprocessSpec(
        resize_size=config.resize_size,
        crop=(config.image_size, config.image_size),
        convert_icc=config.convert_icc,
        dct_margin=DEFAULT_DCT_MARGIN,
        max_pixels=config.max_pixels,
        max_side=config.max_side,
        max_decode_bytes=config.max_decode_bytes,
    )


def class_weights(examples: Sequence[Example], num_classes: int) -> torch.Tensor:
    """The inverse of each class's share of *examples*, [K], so that the mean over *examples* is 1."""
    counts = Counter(example.label for example in examples)
    return torch.tensor(
        [len(examples) / (num_classes * max(1, counts[label])) for label in range(num_classes)]
    )


@dataclass(frozen=True)
class _Images:
    """What the main process found out by reading every image."""

    dataset: Dataset
    inventory: Inventory | None
    unreadable: dict[str, str]
    data: DataFingerprint
    quarantine: Quarantine


def _readable(
    dataset: Dataset, config: TrainConfig, processes: Processes, begun: Sequence[Entry]
) -> _Images:
    """*dataset* without the images that do not decode, or what is left of those that a run was
    *begun* with. One process reads for all.
    """
    inventory, said, most = None, b"", config.max_unreadable_share
    with processes.one_fate():
        if processes.main:
            spec = preprocess_spec(config)
            inventory = (
                find_again(begun, dataset, spec, most=most)
                if begun
                else take_inventory(dataset, spec, most=most)
            )
            said = json.dumps(_told(dataset, inventory)).encode()
    counts, order, unreadable, broken, data = json.loads(processes.shared(said))
    own = _counts(dataset)
    if own != counts:
        raise DataError(
            f"{dataset.source}: process {processes.rank} finds {own} images, and the main process"
            f" {counts}: give all hosts the same data"
        )
    for name, reason in unreadable.items():
        CONSOLE.print(f"[yellow]left out[/] {shown(f'{name}: {reason}')}")
    total = sum(len(places) for places in order.values()) + len(unreadable)
    if unreadable:
        CONSOLE.print(
            f"[yellow]{len(unreadable)} of {total} images cannot be read and are left out[/]"
        )
    told = usage(total - len(unreadable), dataset.unused, unreadable=len(unreadable))
    CONSOLE.print(shown(f"{told}; see run.json" if unreadable or dataset.unused else told))
    _warn_of_copies(inventory)
    known = {(split, name): reason for split, name, reason in broken}
    quarantine = Quarantine(
        dataset.source, images=total, left_out=len(unreadable), most=most, broken=known
    )
    return _Images(
        _arranged(dataset, order),
        inventory,
        unreadable,
        DataFingerprint.model_validate_json(json.dumps(data)),
        quarantine,
    )


Place = tuple[str, int]
Gone = tuple[str, int, str]
"""Name, label, and the reason."""


def _told(dataset: Dataset, inventory: Inventory) -> list[object]:
    """What the main process tells the others, who list the same *dataset*: its size, where in it
    the images of each split are, and what is broken.
    """
    at = {
        id(example): (split, place)
        for split, examples in dataset.splits.items()
        for place, example in enumerate(examples)
    }
    order = {
        split: [
            at.get(id(e)) or (e.name, e.label, inventory.broken[split, e.name]) for e in examples
        ]
        for split, examples in inventory.dataset.splits.items()
    }
    broken = [(*key, reason) for key, reason in inventory.broken.items()]
    return [
        _counts(dataset),
        order,
        inventory.unreadable,
        broken,
        inventory.fingerprint.model_dump(mode="json"),
    ]


def _arranged(dataset: Dataset, order: Mapping[str, Sequence[Place | Gone]]) -> Dataset:
    """The images of *dataset* in *order*, as `_told` gives it."""

    def example(item: Place | Gone) -> Example:
        if len(item) == 2:
            return dataset.splits[item[0]][item[1]]
        return Example(name=item[0], label=item[1], reader=Missing(item[2]))

    return dataclasses.replace(
        dataset, splits={split: tuple(map(example, items)) for split, items in order.items()}
    )


def _warn_of_copies(inventory: Inventory | None) -> None:
    copies = inventory.copies_across if inventory is not None else []
    if copies:
        such = " and ".join(
            f"{entry.name} ({entry.split})" for entry in _one_of_each_split(copies[0])
        )
        number = f"{len(copies)} {'image has a copy' if len(copies) == 1 else 'images have copies'}"
        text = shown(
            f" in another split, such as {such}; the figures will be too good: `loupe data check`"
            " lists them"
        )
        CONSOLE.print(f"[yellow]{number}[/]{text}")


def _one_of_each_split(group: Sequence[Entry]) -> list[Entry]:
    return list({entry.split: entry for entry in group}.values())


def _counts(dataset: Dataset) -> dict[str, int]:
    return {split: len(examples) for split, examples in dataset.splits.items()}


def _with_batch_size(found: Prepared) -> TrainConfig:
    processes, images = found.processes, len(found.examples) // found.processes.count
    size = find_batch_size(
        found.config,
        found.network,
        found.examples,
        preprocess_spec(found.config),
        teacher=found.teacher,
        most=images,
    )
    # GPUs of several hosts may differ: what fits the main process's is taken for all.
    size = int(processes.shared(str(size).encode())) * processes.count
    return dataclasses.replace(found.config, batch_size=size)


def _announce(found: Prepared) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in _counts(found.dataset).items())
    many = f" in {found.processes.count} processes" if found.processes.count > 1 else ""
    told = (
        f"from {found.loaded.identifier} on {found.processes.device.type}{many};"
        f" {found.dataset.source}: {len(found.dataset.labels)} classes, "
    )
    CONSOLE.print(f"[bold]{found.config.network}[/] {shown(f'{told}{counts} images')}")
    if found.teacher is not None:
        model = found.teacher.model
        CONSOLE.print(
            "teacher"
            f" {shown(f'{model.path}: {model.manifest.architecture.network} on {model.provider}')}"
        )
