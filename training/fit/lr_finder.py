"""Finds learning rates: a short training with growing rates, until the loss gets worse.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. A tenth of
the rate at which the smoothed loss is least is far enough from where it rises, and still learns
fast; it is a place to start from, and not the best rate.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from models.errors import ConfigError
from training.config import TrainConfig
from training.data.source import Dataset
from training.distributed import ALONE
from training.fit.failures import memory_advice
from training.fit.finetune import Finetune
from training.fit.phase import Phase, train_epoch
from training.fit.preparation import Prepared, prepare, preprocess_spec
from training.fit.probe import Probe
from training.settings import TorchrunSettings

LOWEST, HIGHEST = 1e-5, 1.0
STEPS = 40
SMOOTHING = 0.8
"""Decay of the moving average of the loss."""
BROKEN_AT = 4.0
"""So many times the least loss is the end of a sweep, if it is also more than that of guessing: a trained head begins near 0."""
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
        best = self.rates[min(range(len(self.losses)), key=self.losses.__getitem__)]
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
    """The curves of the rates that a run by *config* has, and what to set, as text.

    Nothing is written.
    """
    sweeps = find_rates(config, dataset)
    settings = " ".join(f"--set {sweep.field}={sweep.suggestion:g}" for sweep in sweeps)
    return "\n\n".join([*(sweep.text() for sweep in sweeps), f"a place to start from: {settings}"])


def find_rates(config: TrainConfig, dataset: Dataset) -> list[Sweep]:
    """A sweep of the probe's rate, if there is a probe, then one of the rate of all layers, from
    the probed head.

    Raises as `training.fit.loop.train`, and `ConfigError` under torchrun: a sweep is short.
    """
    if TorchrunSettings().world_size > 1:
        raise ConfigError(
            "--find-lr runs in one process; start it without torchrun, and set what it finds in the"
            " run of several"
        )
    # The highest rate as peak, and the share of it that the sweep has got to.
    swept = dataclasses.replace(
        config, probe_learning_rate=HIGHEST, learning_rate=HIGHEST, ema_decay=0.0, compile=False
    )
    prepared = prepare(swept, dataset, ALONE)
    config = dataclasses.replace(config, batch_size=prepared.config.batch_size)
    found: list[Sweep] = []
    guessing = math.log(len(dataset.labels))
    with memory_advice(prepared.config, ALONE.device):
        if config.probe_epochs:
            before = copy.deepcopy(prepared.network.head.state_dict())
            probe = _probe(prepared, prepared.config)
            found.append(sweep(probe, "probe_learning_rate", prepared.loss(), guessing=guessing))
            prepared.network.head.load_state_dict(before)
            _train_head(
                prepared, dataclasses.replace(config, probe_learning_rate=found[0].suggestion)
            )
        if config.epochs:
            spec = preprocess_spec(config)
            phase = Finetune(
                prepared.network,
                prepared.examples,
                (),
                prepared.config,
                spec,
                teacher=prepared.teacher,
                quarantine=prepared.quarantine,
            )
            found.append(sweep(phase, "learning_rate", prepared.loss(), guessing=guessing))
    return found


def sweep(phase: Phase, field: str, loss_of: nn.Module, *, guessing: float) -> Sweep:
    """The losses of *phase* while its rate rises evenly in its logarithm, until they are several
    times the least, or no longer a number.

    *guessing* is the loss of a network that knows nothing.
    """
    learner = phase.learner
    learner.schedule = lambda steps: (LOWEST / HIGHEST) ** (1.0 - steps / (STEPS - 1))
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for epoch in itertools.count(1):
        for batch, (loss, _) in enumerate(phase.losses(epoch, loss_of)):
            value = float(loss.detach())
            average = SMOOTHING * average + (1.0 - SMOOTHING) * value
            smoothed = average / (1.0 - SMOOTHING ** (len(losses) + 1))
            if (
                learner.steps == STEPS
                or not math.isfinite(value)
                or (losses and smoothed > max(BROKEN_AT * min(losses), guessing))
            ):
                return Sweep(field, rates, losses)
            rates.append(HIGHEST * learner.rate())
            losses.append(smoothed)
            learner.learn(loss, batch=batch)
    raise AssertionError("the loop above ends by itself")


def _probe(prepared: Prepared, config: TrainConfig) -> Probe:
    val = prepared.dataset.splits["val"]
    return Probe(
        prepared.network,
        prepared.examples,
        val,
        config,
        preprocess_spec(config),
        quarantine=prepared.quarantine,
    )


def _train_head(prepared: Prepared, config: TrainConfig) -> None:
    """The sweep of all layers begins where a run would: with a trained head."""
    probe = _probe(prepared, config)
    for epoch in range(1, config.probe_epochs + 1):
        train_epoch(probe, epoch, prepared.loss())
