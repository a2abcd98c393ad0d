"""What a run has before its first step: images that can be read, a network with its weights, a
loss. The same for a sweep of rates.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.errors import ConfigError
from models.machine import keep_freed_memory, threads_per_worker
from models.networks.catalogue import build
from models.networks.network import Network
from models.networks.weights import LoadedWeights, load_weights
from models.package.manifest import DataFingerprint, PreprocessSpec
from models.pixels.preprocess import DEFAULT_DCT_MARGIN
from training.config import TrainConfig
from training.data.index import Entry, Index, shared_index, warn_of_copies
from training.data.loader import SEEDS_APART, limited
from training.data.quarantine import Quarantine
from training.data.source import Dataset, Example, tell_used
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
    inventory: Index
    """The images that the run began with, and what they are now."""
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
    index = shared_index(
        dataset, preprocess_spec(config), processes, most=config.max_unreadable_share, begun=begun
    )
    dataset, unreadable = index.dataset, index.unreadable
    tell_used(dataset, unreadable, see="run.json")
    warn_of_copies(index.entries)
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
        index,
        unreadable,
        index.fingerprint(),
        Quarantine(
            dataset.source,
            images=len(index.entries),
            left_out=len(unreadable),
            most=config.max_unreadable_share,
            broken=index.broken,
        ),
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
    counts = ", ".join(
        f"{len(examples)} {split}" for split, examples in found.dataset.splits.items()
    )
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
