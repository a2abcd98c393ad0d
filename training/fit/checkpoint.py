"""The checkpoint of a run: one safetensors file, from which the run resumes: on a CPU bit for bit.

Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import TrainingError
from training.fit.optimisation import within
from training.fit.phase import Phase

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run has got, and the best weights so far."""

    phase: str = ""
    epochs: int = 0
    """Finished in this phase."""
    best_accuracy: float = -1.0
    waited: int = 0
    """Epochs of this phase since the last one that was better than all before."""
    best: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """State of the network after the best epoch, the later of equals; of the head alone in the
    probe phase."""

    def after(self, accuracy: float, judged: Mapping[str, Tensor]) -> Progress:
        """The progress after one more epoch, whose state *judged* reached *accuracy*."""
        waited = 0 if accuracy > self.best_accuracy else self.waited + 1
        done = replace(self, epochs=self.epochs + 1, waited=waited)
        if accuracy < self.best_accuracy:
            return done
        return replace(done, best_accuracy=accuracy, best=copied(judged))


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of *state* in the memory of the CPU."""
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def save_checkpoint(folder: Path, progress: Progress, phase: Phase) -> None:
    """Write the state at the end of an epoch, whole or not at all.

    The random states are those of every process, the rest is the main process's.
    """
    own = {"torch": torch.get_rng_state(), "order": phase.generator.get_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    random = {
        f"{rank}.{source}": torch.frombuffer(bytearray(state), dtype=torch.uint8)
        for source, value in own.items()
        for rank, state in enumerate(phase.processes.collected(value.numpy().tobytes()))
    }
    if not phase.processes.main:
        return
    parts = {
        "network": phase.state(phase.learner.module),
        "best": progress.best,
        "learner": phase.learner.tensors(),
        "random": random,
    }
    tensors = {
        f"{part}.{key}": value.detach().cpu().contiguous()
        for part, state in parts.items()
        for key, value in state.items()
    }
    numbers = {key: value for key, value in vars(progress).items() if key != "best"}
    partial = folder / f"{CHECKPOINT_FILE}.partial"
    save_file(tensors, partial, metadata={"progress": json.dumps(numbers)})
    partial.replace(folder / CHECKPOINT_FILE)


def read_checkpoint(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """The progress of the run in *folder*, and the tensors of its checkpoint.

    There are none before the first epoch is finished. Raises `TrainingError` if the checkpoint is
    damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return Progress(), {}
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        return Progress(**numbers, best=within(tensors, "best.")), tensors
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged: {error}; remove {folder} and train again"
        ) from error


def restore(phase: Phase, tensors: Mapping[str, Tensor]) -> None:
    """Put *phase*, its network and all random states back to where the checkpoint was written."""
    phase.network.load_state_dict(within(tensors, "network."), strict=False)
    phase.learner.restore(within(tensors, "learner."))
    random = within(tensors, f"random.{phase.processes.rank}.")
    torch.set_rng_state(random["torch"])
    phase.generator.set_state(random["order"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
