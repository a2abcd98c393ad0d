"""What torchrun starts in tests/training/test_distributed.py: several runs by the same two
processes, so that torch is imported once.

torchrun --nproc-per-node 2 tests/training/joint.py OUT
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from models.errors import TrainingError
from tests.training.photos import in_memory
from tests.training.small_runs import TINY
from training.data.source import Dataset, load_dataset
from training.distributed import joined
from training.fit import loop
from training.fit.finetune import Finetune
from training.fit.loop import train

EQUAL = dataclasses.replace(
    TINY,
    network="simple_cnn,norm=group,dropout=0.0",
    probe_epochs=2,
    epochs=3,
    batch_size=8,
    learning_rate=0.05,
    optimiser="sgd",
    crop_scale_min=1.0,
    horizontal_flip=False,
    accumulate=2,
    ema_decay=0.5,
)
"""Only the order of images is random, and no layer looks beyond its image. The number of processes
must not matter."""
EVEN = 8
"""Of each colour: three batches of 8, of which each process takes 4."""
ODD = 5
"""Of each colour: batches of 8 and 7, of which each process takes 4 and 3; one image is left."""
DRAWN = dataclasses.replace(
    TINY,
    network="simple_cnn",
    probe_epochs=1,
    epochs=3,
    batch_size=8,
    ema_decay=0.9,
    augment="trivial",
    mixup=0.2,
)
"""Everything in it is drawn by chance, and batch normalisation looks at the whole batch."""

LOST = "photos/train/red/001.png"


def photos(*, train: int) -> Dataset:
    """*train* training images of each of three colours, and seven to validate on, of which one
    process takes four and the other three.
    """
    dataset = in_memory(train=train, held_out=3)
    return dataclasses.replace(dataset, splits={**dataset.splits, "val": dataset.splits["val"][:7]})


def _stop_after(saved: int) -> None:
    """Ctrl-C, in every process, as soon as *saved* checkpoints are written."""
    save, counted = loop.save_checkpoint, iter(range(1, 100))

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)
        if next(counted) == saved:
            raise KeyboardInterrupt

    loop.save_checkpoint = save_and_stop


def _remove_after(saved: int, path: Path) -> None:
    """The file *path* is gone as soon as every process has written *saved* checkpoints."""
    save, counted = loop.save_checkpoint, iter(range(1, 100))

    def save_and_remove(*arguments: object) -> None:
        save(*arguments)
        if next(counted) == saved:
            path.unlink(missing_ok=True)

    loop.save_checkpoint = save_and_remove


def main(out: Path) -> None:
    """The runs `equal`, `whole`, `resumed`, which was interrupted, and `broken`, of the files in
    `photos`, one of which is lost on the way.
    """
    save = loop.save_checkpoint
    with joined():
        train(EQUAL, photos(train=EVEN), out / "equal")
        train(DRAWN, photos(train=ODD), out / "whole")
        _stop_after(2)
        try:
            train(DRAWN, photos(train=ODD), out / "resumed")
        except KeyboardInterrupt:
            loop.save_checkpoint = save
        train(DRAWN, photos(train=ODD), out / "resumed", resume=True)
        _remove_after(2, out / LOST)
        train(
            dataclasses.replace(DRAWN, max_unreadable_share=0.1),
            load_dataset(str(out / "photos")),
            out / "broken",
        )
        loop.save_checkpoint = save
        _stop_after(2)
        try:
            train(DRAWN, photos(train=ODD), out / "interrupted")
        except KeyboardInterrupt:
            loop.save_checkpoint = save


def lose(out: Path) -> None:
    """A run whose second process ends in the middle."""
    accuracy = Finetune.accuracy

    def ended(phase: Finetune) -> float:
        if phase.processes.main:
            return accuracy(phase)
        raise TrainingError("said by process 1")

    Finetune.accuracy = ended
    train(DRAWN, photos(train=ODD), out / "lost")


if __name__ == "__main__":
    (lose if "lose" in sys.argv else main)(Path(sys.argv[1]))
