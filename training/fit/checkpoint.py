"""Where a run has got to: one safetensors file, from which it goes on bit for bit.

Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import TrainingError
from training.fit.optimisation import within
from training.fit.phase import Phase

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """What has been done, and the best that came of it."""

    phase: str
    epochs: int = 0
    """Done in this phase."""
    best_accuracy: float = -1.0
    waited: int = 0
    """Epochs of this phase since one was better than all before."""
    best: Mapping[str, Tensor] = field(default_factory=dict)
    """State of the network after the best epoch, the later of equals; in the probe phase of the head alone."""

    @property
    def place(self) -> tuple[str, int]:
        """Phase and epochs: where the run has got to."""
        return self.phase, self.epochs

    def after(self, accuracy: float, judged: Mapping[str, Tensor]) -> Progress:
        """With one more epoch, whose state *judged* reached *accuracy*."""
        waited = 0 if accuracy > self.best_accuracy else self.waited + 1
        done = replace(self, epochs=self.epochs + 1, waited=waited)
        if accuracy < self.best_accuracy:
            return done
        best = {key: value.detach().cpu().clone() for key, value in judged.items()}
        return replace(done, best_accuracy=accuracy, best=best)


def save_checkpoint(folder: Path, progress: Progress, phase: Phase) -> None:
    """Write the state at the end of an epoch, whole or not at all.

    Every process has a random state; the rest is the main process's.
    """
    random_states = _gathered_random_states(phase)
    if not phase.processes.main:
        return
    parts = {
        "network": phase.trained(),
        "best": progress.best,
        "learner": phase.learner.tensors(),
        **random_states,
    }
    tensors = {
        f"{part}.{key}": value.detach().cpu().contiguous()
        for part, state in parts.items()
        for key, value in state.items()
    }
    numbers = {
        key: value for key, value in asdict(replace(progress, best={})).items() if key != "best"
    }
    partial = folder / f"{CHECKPOINT_FILE}.partial"
    save_file(tensors, partial, metadata={"progress": json.dumps(numbers)})
    partial.replace(folder / CHECKPOINT_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    progress: Progress
    tensors: Mapping[str, Tensor]

    def restore(self, phase: Phase, network: nn.Module) -> None:
        """Put *network*, *phase* and every source of chance back to where they were."""
        network.load_state_dict(within(self.tensors, "network."), strict=False)
        phase.learner.restore(within(self.tensors, "learner."))
        _set_random_state(within(self.tensors, f"random.{phase.processes.rank}."), phase.generator)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of the run in *folder*; None if it did not finish an epoch.

    Raises `TrainingError` if it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        return Checkpoint(Progress(**numbers, best=within(tensors, "best.")), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged: {error}; remove {folder} and train again"
        ) from error


def remove_checkpoint(folder: Path) -> None:
    """Once a run is finished, there is nothing to go on from."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _gathered_random_states(phase: Phase) -> dict[str, dict[str, Tensor]]:
    """`random.<rank>` -> the random state of that process."""
    gathered = {
        key: phase.processes.gathered(value)
        for key, value in _random_state(phase.generator).items()
    }
    return {
        f"random.{rank}": {key: values[rank] for key, values in gathered.items()}
        for rank in range(phase.processes.count)
    }


def _random_state(generator: torch.Generator) -> dict[str, Tensor]:
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    state = {
        "torch": torch.get_rng_state(),
        "order": generator.get_state(),
        "python": torch.tensor(words),
        "python_gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: Mapping[str, Tensor], generator: torch.Generator) -> None:
    torch.set_rng_state(state["torch"])
    generator.set_state(state["order"])
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(
        (
            "MT19937",
            np.array(keys, dtype=np.uint32),
            position,
            has_gauss,
            float(state["numpy_gauss"]),
        )
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
