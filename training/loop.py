"""The training loop: from a config and a data set to a run folder.

Letters used in shapes: N images, H and W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.markup import escape
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from models.architectures.catalogue import build
from models.architectures.network import IMAGENET_MEAN, IMAGENET_STD, Network
from models.architectures.weights import LoadedWeights, load_weights
from models.errors import TrainingError
from models.machine import threads_per_worker
from models.manifest import PreprocessSpec
from models.preprocess import DEFAULT_DCT_MARGIN
from training.config import TrainConfig
from training.data import Dataset, Example, fingerprint, without_unreadable
from training.images import evaluation_batches, train_loader
from training.progress import CONSOLE, steps
from training.run import EpochResult, Run, RunRecord, create_run

MAX_GRADIENT_NORM = 1.0


def train(config: TrainConfig, dataset: Dataset, out: Path) -> Run:
    """Train as *config* says; the run folder *out* then holds the weights with the best validation accuracy.

    Raises `ConfigError`, `DataError`, or `TrainingError` if the loss is no longer finite.
    """
    torch.manual_seed(config.seed)
    # torch counts the cores of the machine, not those that the cgroup leaves us; too many threads wait for each other at every barrier.
    torch.set_num_threads(threads_per_worker(1))
    dataset, unreadable = without_unreadable(dataset, preprocess_spec(config))
    for name, reason in unreadable.items():
        CONSOLE.print(f"[yellow]left out[/] {escape(f'{name}: {reason}')}")
    network = build(config.network, num_classes=len(dataset.labels), image_size=config.image_size)
    loaded = load_weights(network, config.network, config.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _announce(config, dataset, loaded, device)
    run = create_run(out, config, RunRecord.of(dataset, loaded, fingerprint(dataset), unreadable))
    run.save_weights(_Trainer(config, network, dataset, device).fit(run))
    return run


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """How the images of a run are prepared, in evaluation and ever after."""
    return PreprocessSpec(
        resize_size=config.resize_size,
        crop=(config.image_size, config.image_size),
        convert_icc=config.convert_icc,
        dct_margin=DEFAULT_DCT_MARGIN,
    )


class _Trainer:
    """What the epochs of one run share."""

    def __init__(self, config: TrainConfig, network: Network, dataset: Dataset, device: torch.device) -> None:
        self.config = config
        self.network = network.to(device)
        self.device = device
        self.spec = preprocess_spec(config)
        self.validation = dataset.splits["val"]
        self.loader: DataLoader[tuple[Tensor, Tensor]] = train_loader(dataset.splits["train"], config, self.spec)
        if config.freeze_features:
            network.features.requires_grad_(requires_grad=False)
        self.optimiser = AdamW(_parameter_groups(network, config.weight_decay), lr=config.learning_rate)
        total = config.epochs * len(self.loader)
        self.schedule = LambdaLR(self.optimiser, lambda step: _rate(step, total, config.warmup_share))
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    def fit(self, run: Run) -> dict[str, Tensor]:
        """The weights of the epoch with the best validation accuracy; the later one of equals."""
        best_accuracy, best = -1.0, dict[str, Tensor]()
        for epoch in range(1, self.config.epochs + 1):
            result = self._epoch(epoch)
            run.log(result)
            CONSOLE.print(f"epoch {epoch}/{self.config.epochs}  loss {result.train_loss:.4f}  validation accuracy {result.val_accuracy:.2%}")
            if result.val_accuracy >= best_accuracy:
                best_accuracy = result.val_accuracy
                best = {key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()}
        return best

    def _epoch(self, epoch: int) -> EpochResult:
        started = time.perf_counter()
        self.network.train()
        if self.config.freeze_features:
            # Frozen features keep their batch statistics too.
            self.network.features.eval()
        total_loss, seen = 0.0, 0
        for images_N3HW, labels_N in steps(self.loader, total=len(self.loader), title=f"epoch {epoch}/{self.config.epochs}"):
            total_loss += self._step(epoch, images_N3HW, labels_N) * len(labels_N)
            seen += len(labels_N)
        seconds = time.perf_counter() - started
        rate = float(self.schedule.get_last_lr()[0])
        return EpochResult(epoch, total_loss / seen, self._accuracy(self.validation), rate, seen / seconds)

    def _step(self, epoch: int, images_N3HW: Tensor, labels_N: Tensor) -> float:
        """The loss of one batch, after the update."""
        logits_NK = self.network(normalised(images_N3HW.to(self.device)))
        loss: Tensor = self.loss_of(logits_NK, labels_N.to(self.device))
        value = loss.item()
        if not math.isfinite(value):
            # The peak, which the user set, and not today's point on the schedule.
            rate = self.config.learning_rate
            raise TrainingError(f"the loss became {value} in epoch {epoch}; learning_rate is {rate:.2g}: train again with {rate / 10:.1g}")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimiser.step()
        self.schedule.step()
        return value

    @torch.inference_mode()
    def _accuracy(self, examples: Sequence[Example]) -> float:
        self.network.eval()
        correct, start = 0, 0
        for pixels_NHWC in evaluation_batches(examples, self.spec, self.config.batch_size):
            images_N3HW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)
            predicted = self.network(normalised(images_N3HW.to(self.device))).argmax(dim=1).tolist()
            correct += sum(index == example.label for index, example in zip(predicted, examples[start : start + len(predicted)], strict=True))
            start += len(predicted)
        return correct / len(examples)


def normalised(images_N3HW: Tensor) -> Tensor:
    """`float32 [N,3,H,W]` with ImageNet's statistics, from `uint8`; the exported graph does the same inside."""
    mean = torch.tensor(IMAGENET_MEAN, device=images_N3HW.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images_N3HW.device).view(1, 3, 1, 1)
    return (images_N3HW.float() / 255.0 - mean) / std


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay; biases and the parameters of normalisation do not. Source: He et al. 2018, "Bag of Tricks", section 3.1."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def _rate(step: int, total: int, warmup_share: float) -> float:
    """Factor of the peak learning rate at *step*: linear from 0, then a cosine to 0."""
    warmup = max(1, round(warmup_share * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _announce(config: TrainConfig, dataset: Dataset, loaded: LoadedWeights, device: torch.device) -> None:
    counts = ", ".join(f"{len(examples)} {split}" for split, examples in dataset.splits.items())
    told = f"from {loaded.identifier} on {device}; {dataset.source}: {len(dataset.labels)} classes, {counts} images"
    CONSOLE.print(f"[bold]{config.network}[/] {escape(told)}")
