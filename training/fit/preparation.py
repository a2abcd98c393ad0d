"""What a run needs before its first step: readable images, a network with its weights, a teacher.

The search for learning rates starts from the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from models.errors import ConfigError
from models.machine import keep_freed_memory, threads_per_worker
from models.networks.catalogue import build
from models.networks.network import Network
from models.networks.weights import LoadedWeights, load_weights
from training.config import TrainConfig
from training.data.index import Index, IndexedImage, shared_index, warn_of_copies
from training.data.loader import SEEDS_APART, limited
from training.data.quarantine import Quarantine
from training.data.source import Dataset, Example, tell_used
from training.distributed import Processes, share_of_batch
from training.fit.auto_batch import find_batch_size
from training.fit.inputs import preprocess_spec, settled
from training.fit.optimisation import frozen_modules
from training.fit.phase import Phase
from training.fit.teacher import Teacher, open_teacher
from training.progress import CONSOLE, shown

Kind = TypeVar("Kind", bound=Phase)


@dataclass(frozen=True)
class Prepared:
    """All that training needs, on the device of this process."""

    config: TrainConfig
    """With the batch size that was found, if one was to be found."""
    index: Index
    """The images that the run began with, and what they are now."""
    quarantine: Quarantine
    network: Network
    loaded: LoadedWeights
    teacher: Teacher | None
    processes: Processes

    @property
    def dataset(self) -> Dataset:
        """Without unreadable images."""
        return self.index.dataset

    @property
    def examples(self) -> Sequence[Example]:
        """The training images."""
        return limited(self.dataset.splits["train"], self.config.max_train_images)

    def phase(self, kind: type[Kind], config: TrainConfig | None = None) -> Kind:
        """A phase of this run, or of one by *config*."""
        return kind(
            self.network,
            self.examples,
            self.dataset.splits["val"],
            config or self.config,
            processes=self.processes,
            teacher=self.teacher,
            quarantine=self.quarantine,
        )


def prepare(
    config: TrainConfig,
    dataset: Dataset,
    processes: Processes,
    *,
    begun: Sequence[IndexedImage] = (),
) -> Prepared:
    """Prepare a run by *config* on *dataset*. A run to resume has *begun* with those images.

    Raises `ConfigError` or `DataError`, before anything is written.
    """
    CONSOLE.quiet = not processes.main
    config = settled(config)
    torch.manual_seed(config.seed)
    # By default torch starts a thread for each core of the machine, not of the cgroup. Too many
    # threads wait for each other at every barrier.
    torch.set_num_threads(threads_per_worker(processes.local_count))
    if processes.device.type == "cpu":
        keep_freed_memory()
    if config.batch_size:
        share_of_batch(config.batch_size, processes)
    index = shared_index(
        dataset, preprocess_spec(config), processes, most=config.max_unreadable_share, begun=begun
    )
    tell_used(index.dataset, index.unreadable, see="run.json")
    warn_of_copies(index.entries)
    labels = dataset.labels
    network = build(config.network, num_classes=len(labels), image_size=config.image_size)
    frozen_modules(network, config.freeze)
    with processes.one_fate():
        # The main process downloads the weights, and the others find the file.
        loaded = _loaded(network, config) if processes.main else None
    loaded = loaded or _loaded(network, config)
    teacher = open_teacher(config, labels, processes)
    network = network.to(processes.device)
    quarantine = Quarantine(
        dataset.source,
        images=len(index.entries),
        left_out=len(index.unreadable),
        most=config.max_unreadable_share,
        broken=index.broken,
    )
    prepared = Prepared(config, index, quarantine, network, loaded, teacher, processes)
    if not config.batch_size:
        size = find_batch_size(
            config,
            network,
            prepared.examples,
            teacher=teacher,
            most=len(prepared.examples) // processes.count,
        )
        # GPUs of several hosts may differ: all take what fits the main process's.
        size = int(processes.shared(str(size).encode())) * processes.count
        config = dataclasses.replace(config, batch_size=size)
        prepared = dataclasses.replace(prepared, config=config)
    prepared = dataclasses.replace(prepared, network=synchronised(network, processes))
    if len(prepared.examples) < 2 * processes.count:
        raise ConfigError(
            f"{len(prepared.examples)} training images for {processes.count} processes; expected 2"
            " or more for each"
        )
    _print_start(prepared)
    if not processes.main:
        # All processes have the same weights now. Each draws its own augmentations.
        torch.manual_seed(config.seed + processes.rank * SEEDS_APART)
    return prepared


def synchronised(network: Network, processes: Processes) -> Network:
    """*network* with batch statistics over all processes, as one process would have them.

    There is no such layer on a CPU. In training it waits for every process: it may not be there
    while each process alone looks for a batch size, because these tries end at different sizes.
    """
    if processes.count == 1 or processes.device.type != "cuda":
        return network
    found: Network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return found


def _loaded(network: Network, config: TrainConfig) -> LoadedWeights:
    return load_weights(network, config.network, config.weights, image_size=config.image_size)


def _print_start(prepared: Prepared) -> None:
    dataset, processes, teacher = prepared.dataset, prepared.processes, prepared.teacher
    counts = ", ".join(f"{len(examples)} {split}" for split, examples in dataset.splits.items())
    many = f" in {processes.count} processes" if processes.count > 1 else ""
    text = (
        f"from {prepared.loaded.identifier} on {processes.device.type}{many}; {dataset.source}:"
        f" {len(dataset.labels)} classes, {counts} images"
    )
    CONSOLE.print(f"[bold]{prepared.config.network}[/] {shown(text)}")
    if teacher is not None:
        network, provider = teacher.model.manifest.architecture.network, teacher.model.provider
        CONSOLE.print(f"teacher {shown(f'{teacher.model.path}: {network} on {provider}')}")
