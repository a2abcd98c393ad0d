"""Our training loop against a bare loop of torch with the same network, images and optimiser.

    python -m benchmarks.loop_overhead [--data FOLDER] [--network mobilenet_v2] [--size 224]
                                       [--images 128] [--batch 32] [--rounds 5]
                                       [--decode-workers 0] [--alike] [--out FILE]

FOLDER holds class folders, by default the training photos of hymenoptera. The bare loop does what
torchvision's references do: `ImageFolder`, `RandomResizedCrop`, `RandomHorizontalFlip`, a
`DataLoader`, cross entropy, AdamW, gradient clipping, a cosine schedule, and the loss read at each
step. Ours is an epoch of `Phase.train_epoch` on the same files.

Each loop has its own process, because ours tells the allocator of its process to keep freed memory,
and a script does not. `--alike` tells both. Epochs alternate, the first of each warms up, and the
ratio is taken within a round. The target is 0.97.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.record import command, machine, results_file, shared_data, spread, write
from models.machine import keep_freed_memory, threads_per_worker
from models.networks.catalogue import build
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD
from training.config import TrainConfig
from training.data.source import Example
from training.fit.finetune import Finetune


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    options = _options(arguments)
    with ExitStack() as running:
        epochs = {side: running.enter_context(_process(side, options)) for side in ("ours", "bare")}
        rounds = [
            {side: epoch() for side, epoch in epochs.items()} for _ in range(options.rounds + 1)
        ][1:]
    report: dict[str, Any] = {
        "command": command("loop_overhead", arguments),
        "machine": {**machine(), "threads": threads_per_worker(1)},
        "versions": {name: version(name) for name in ("torch", "torchvision", "pillow")},
        "images": options.images,
        "rounds": rounds,
        "images_per_s": {
            side: spread([found[side] for found in rounds]) for side in ("ours", "bare")
        },
        "ratio": spread([found["ours"] / found["bare"] for found in rounds]),
    }
    for name, found in {**report["images_per_s"], "ours / bare": report["ratio"]}.items():
        print(
            f"{name:12} {found['median']:8.3f}  ({found['least']:.3f} to {found['greatest']:.3f},"
            f" {len(rounds)} rounds)"
        )
    write(report, options.out)


@contextmanager
def _process(side: str, options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """A process that is *side*; each call gives the images/s of its next epoch."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(side, options, there))
    process.start()
    there.close()

    def epoch() -> float:
        here.send(True)
        rate: float = here.recv()
        return rate

    yield epoch
    here.close()
    process.join()


def _answer(side: str, options: argparse.Namespace, orders: Connection) -> None:
    """Train an epoch for each of *orders*."""
    torch.set_num_threads(threads_per_worker(1))
    if side == "ours" or options.alike:
        # As `training.fit.preparation.prepare` does.
        keep_freed_memory()
    config = TrainConfig(
        network=options.network,
        weights="none",
        image_size=options.size,
        resize_size=options.size,
        batch_size=options.batch,
        epochs=options.rounds + 1,
        decode_workers=options.decode_workers,
    )
    folder = ImageFolder(str(options.data))
    places = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0))[
        : options.images
    ].tolist()
    epoch = (_ours if side == "ours" else _bare)(config, folder, places)
    with suppress(EOFError):
        while orders.recv():
            orders.send(_timed(epoch, len(places)))


def _timed(epoch: Callable[[], object], images: int) -> float:
    """Images/s of one epoch."""
    started = time.perf_counter()
    epoch()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _ours(config: TrainConfig, folder: ImageFolder, places: Sequence[int]) -> Callable[[], object]:
    torch.manual_seed(0)
    chosen = [folder.samples[place] for place in places]
    examples = [Example(name=path, label=label, path=Path(path)) for path, label in chosen]
    network = build(config.network, num_classes=len(folder.classes)).to(_device())
    phase = Finetune(network, examples, (), config)
    return lambda: phase.train_epoch(1)


def _bare(config: TrainConfig, folder: ImageFolder, places: Sequence[int]) -> Callable[[], object]:
    torch.manual_seed(0)
    device = _device()
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(
                config.image_size, scale=(config.crop_scale_min, 1.0), antialias=True
            ),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    dataset = Subset(ImageFolder(folder.root, transform), places)
    workers = config.decode_workers
    loader = DataLoader(
        dataset,
        config.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    network = build(config.network, num_classes=len(folder.classes)).to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * len(loader))
    loss_of = nn.CrossEntropyLoss()

    def epoch() -> float:
        network.train()
        total = 0.0
        for images_N3HW, labels_N in loader:
            loss = loss_of(
                network(images_N3HW.to(device, non_blocking=True)),
                labels_N.to(device, non_blocking=True),
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimiser.step()
            schedule.step()
            total += loss.item()
        return total

    return epoch


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=shared_data() / "hymenoptera" / "train",
        help="folder of class folders",
    )
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--images", type=int, default=128, help="in an epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode-workers", type=int, default=0)
    parser.add_argument("--alike", action="store_true", help="keep freed memory in both")
    parser.add_argument("--out", type=Path, default=results_file("loop_overhead"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
