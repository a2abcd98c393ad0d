"""Learning rate finder: trains with growing rates until the loss gets worse, then suggests rates.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. The
suggestion is a tenth of the rate at which the smoothed loss is least. It is far enough from where
the loss rises, and still learns fast: a place to start from, not the best rate.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ConfigError
from training.config import TrainConfig
from training.data.source import Dataset
from training.distributed import ALONE
from training.fit.failures import memory_advice
from training.fit.finetune import Finetune
from training.fit.phase import Phase
from training.fit.preparation import prepare
from training.fit.probe import Probe
from training.settings import TorchrunSettings

LOWEST, HIGHEST = 1e-5, 1.0
STEPS = 40
SMOOTHING = 0.8
"""Decay of the moving average of the loss."""
BROKEN_AT = 4.0
"""A sweep ends when the loss is so many times the least loss and more than that of guessing. The
second condition is for a trained head, whose loss begins near 0."""
ROWS, WIDTH = 15, 40


@dataclass(frozen=True)
class Sweep:
    """The smoothed loss at each rate, in the order that they were tried."""

    field: str
    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate of the least loss, to one digit."""
        best = self.rates[self.losses.index(min(self.losses))]
        return float(f"{best / 10.0:.0e}")

    def text(self) -> str:
        """The curve, for a terminal."""
        rows = range(0, len(self.rates), max(1, len(self.rates) // ROWS))
        most = max(self.losses[row] for row in rows)
        lines = [
            f"{self.rates[row]:9.1e}  {self.losses[row]:8.4f} "
            f" {'#' * round(WIDTH * self.losses[row] / most)}"
            for row in rows
        ]
        return "\n".join([f"{self.field}, and the loss there", *lines])


def suggest(config: TrainConfig, dataset: Dataset) -> str:
    """The curves of the rates of a run by *config*, and what to set, as text.

    Nothing is written.
    """
    sweeps = find_rates(config, dataset)
    settings = " ".join(f"--set {sweep.field}={sweep.suggestion:g}" for sweep in sweeps)
    return "\n\n".join([*(sweep.text() for sweep in sweeps), f"a place to start from: {settings}"])


def find_rates(config: TrainConfig, dataset: Dataset) -> list[Sweep]:
    """A sweep for the rate of each phase. The one of all layers starts from a trained head.

    Raises as `training.fit.loop.train`, and `ConfigError` under torchrun: a sweep is short.
    """
    if TorchrunSettings().world_size > 1:
        raise ConfigError(
            "--find-lr runs in one process; start it without torchrun, and set what it finds in the"
            " run of several"
        )
    # The peak is the highest rate; the schedule of a sweep gives the share of it.
    highest = dataclasses.replace(
        config, probe_learning_rate=HIGHEST, learning_rate=HIGHEST, ema_decay=0.0, compile=False
    )
    prepared = prepare(highest, dataset, ALONE)
    guessing = math.log(len(dataset.labels))
    sweeps: list[Sweep] = []
    with memory_advice(prepared.config, ALONE.device):
        if config.probe_epochs:
            untrained = copy.deepcopy(prepared.network.head.state_dict())
            swept = prepared.phase(Probe)
            sweeps.append(sweep(swept, guessing=guessing))
            prepared.network.head.load_state_dict(untrained)
            rate = sweeps[0].suggestion
            probe = prepared.phase(
                Probe, dataclasses.replace(prepared.config, probe_learning_rate=rate)
            )
            probe.features = swept.features
            for epoch in range(1, config.probe_epochs + 1):
                probe.train_epoch(epoch)
        if config.epochs:
            sweeps.append(sweep(prepared.phase(Finetune), guessing=guessing))
    return sweeps


def sweep(phase: Phase, *, guessing: float) -> Sweep:
    """The losses of *phase* while its rate rises evenly in its logarithm.

    It ends when the loss is several times the least, or not finite. *guessing* is the loss of a
    network that knows nothing.
    """
    learner = phase.learner
    learner.schedule = lambda steps: (LOWEST / HIGHEST) ** (1.0 - steps / (STEPS - 1))
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for epoch in itertools.count(1):
        for batch, (loss, _) in enumerate(phase.losses(epoch)):
            value = float(loss.detach())
            average = SMOOTHING * average + (1.0 - SMOOTHING) * value
            smoothed = average / (1.0 - SMOOTHING ** (len(losses) + 1))
            worse = losses and smoothed > max(BROKEN_AT * min(losses), guessing)
            if learner.steps == STEPS or not math.isfinite(value) or worse:
                return Sweep(phase.rate_field, rates, losses)
            rates.append(HIGHEST * learner.rate())
            losses.append(smoothed)
            learner.learn(loss, batch=batch)
    raise AssertionError("the loop above ends by itself")
