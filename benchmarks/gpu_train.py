"""Training steps on a GPU: images/s in fp32 and bf16, eager and compiled.

    python -m benchmarks.gpu_train [--network resnet50 --network mobilenet_v3_large]
                                   [--batch 128] [--size 224] [--rounds 5] [--seconds 5]
                                   [--out FILE]

It needs torch, torchvision and this checkout, but no data and no network. It also runs on a CPU,
where it says little.

A step is that of a run: `Finetune.loss` (pixels to the GPU, normalisation, forward, loss) and
`Learner.learn` (backward, clipping, AdamW). Its batches are noise in pinned memory, so no decoding
is measured. bf16 uses channels-last and fp32 does not, as in the recipes. In fp32 cuDNN may use
TF32 in convolutions, which is torch's default. Within a round each variant runs for --seconds
before the next one, and ratios are taken within a round. Compilation is timed separately. Peak
memory is that of the allocator.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import command, machine, results_file, spread, write
from models.machine import threads_per_worker
from models.networks.catalogue import build
from training.config import TrainConfig
from training.data.source import Example
from training.fit.finetune import Finetune

NETWORKS = ("resnet50", "mobilenet_v3_large")
CLASSES = 1000
WARM_UP_STEPS = 3
BATCHES = 4
"""Batches of noise in turn: a network would learn a batch that stays the same."""
VARIANTS = {
    "fp32 eager": {},
    "fp32 compiled": {"compile": True},
    "bf16 eager": {"precision": "bf16", "channels_last": True},
    "bf16 compiled": {"precision": "bf16", "channels_last": True, "compile": True},
}
RATIOS = (
    ("bf16 eager", "fp32 eager"),
    ("bf16 compiled", "fp32 compiled"),
    ("fp32 compiled", "fp32 eager"),
    ("bf16 compiled", "bf16 eager"),
)


@dataclass(frozen=True)
class Variant:
    """One network, in one precision, compiled or not, ready to be measured."""

    phase: Finetune
    batches: Sequence[tuple[Tensor, Tensor]]
    first_step_s: float
    """Seconds of the first step, compilation included."""
    peak_bytes: int

    def images_per_s(self, seconds: float) -> float:
        """Images/s over complete steps, for *seconds* or more."""
        _wait()
        started, images, step = time.perf_counter(), 0, 0
        while (took_s := time.perf_counter() - started) < seconds or step == 0:
            images += _step(self.phase, self.batches[step % len(self.batches)])
            step += 1
            if step % 10 == 0:
                _wait()
        _wait()
        took_s = time.perf_counter() - started
        return images / took_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    options = _options(arguments)
    torch.set_num_threads(threads_per_worker(1))
    report: dict[str, Any] = {
        "command": command("gpu_train", arguments),
        "machine": {
            **machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
        "versions": (
            {name: version(name) for name in ("torch", "torchvision")}
            | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        ),
        "batch": options.batch,
        "size": options.size,
        "networks": {},
    }
    for name in options.network or NETWORKS:
        variants, refused = open_variants(name, batch=options.batch, size=options.size)
        rounds = [
            {variant: made.images_per_s(options.seconds) for variant, made in variants.items()}
            for _ in range(options.rounds)
        ]
        report["networks"][name] = figures(variants, rounds) | {"refused": refused}
        print_table(name, report["networks"][name])
        del variants
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    write(report, options.out)


def open_variants(
    network: str, *, batch: int, size: int
) -> tuple[dict[str, Variant], dict[str, str]]:
    """Every variant of *network*, warm; and the reason for each that this machine cannot run."""
    found, refused = {}, {}
    for name, changes in VARIANTS.items():
        plain = TrainConfig(
            network=network,
            weights="none",
            image_size=size,
            resize_size=size,
            batch_size=batch,
            epochs=1000,
        )
        try:
            found[name] = _open(dataclasses.replace(plain, **changes))
        # What a compiler or a driver lacks has as many types as there are ways to lack it, and the
        # other variants are to be measured still.
        except Exception as error:  # noqa: BLE001
            refused[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    return found, refused


def figures(variants: dict[str, Variant], rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Images/s of each variant, ratios within a round, first step and memory."""
    return {
        "images_per_s": {name: spread([found[name] for found in rounds]) for name in variants},
        "ratios": {
            f"{a} / {b}": spread([found[a] / found[b] for found in rounds])
            for a, b in RATIOS
            if a in variants and b in variants
        },
        "first_step_s": {name: variant.first_step_s for name, variant in variants.items()},
        "peak_bytes": {name: variant.peak_bytes for name, variant in variants.items()},
        "rounds": list(rounds),
    }


def print_table(network: str, found: dict[str, Any]) -> None:
    """The figures of *network*, for a terminal."""
    for name, images in found["images_per_s"].items():
        gib = found["peak_bytes"][name] / 2**30
        print(
            f"{network:20} {name:14} {images['median']:9.1f} images/s  ({images['least']:.1f} to"
            f" {images['greatest']:.1f})  first step {found['first_step_s'][name]:.1f} s "
            f" {gib:.1f} GiB"
        )
    for name, ratio in found["ratios"].items():
        print(
            f"{network:20} {name:32} {ratio['median']:.2f}  ({ratio['least']:.2f} to"
            f" {ratio['greatest']:.2f})"
        )
    for name, reason in found["refused"].items():
        print(f"{network:20} {name:14} not measured: {reason}")


def _open(config: TrainConfig) -> Variant:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = (
        build(config.network, num_classes=CLASSES, image_size=config.image_size).to(device).train()
    )
    # As many as make steps enough for the schedule; none is ever read.
    examples = [Example(name="noise", label=0, encoded=b"")] * config.batch_size
    phase = Finetune(network, examples, (), config)
    batches = [_noise(config) for _ in range(BATCHES)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    _step(phase, batches[0])
    _wait()
    first_step_s = time.perf_counter() - started
    for step in range(WARM_UP_STEPS):
        _step(phase, batches[step % BATCHES])
    _wait()
    return Variant(
        phase,
        batches,
        first_step_s,
        torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    )


def _noise(config: TrainConfig) -> tuple[Tensor, Tensor]:
    images_N3HW = torch.randint(
        0, 256, (config.batch_size, 3, config.image_size, config.image_size), dtype=torch.uint8
    )
    labels_N = torch.randint(0, CLASSES, (config.batch_size,))
    return (
        (images_N3HW.pin_memory(), labels_N.pin_memory())
        if torch.cuda.is_available()
        else (images_N3HW, labels_N)
    )


def _step(phase: Finetune, batch: tuple[Tensor, Tensor]) -> int:
    phase.learner.learn(phase.loss(*batch), batch=0)
    return len(batch[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network", action="append", help="of models.networks.catalogue; may be repeated"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each variant in a round")
    parser.add_argument("--out", type=Path, default=results_file("gpu_train"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
