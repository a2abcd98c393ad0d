"""What makes a step of a loss: which parameters are trained, at which rates, and what is remembered
between steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from models.errors import ConfigError
from models.networks.network import Network
from training.config import TrainConfig

MOMENTUM = 0.9
BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the only name of what all batch normalisations share
Group = dict[str, object]


class Learner:
    """The optimiser of *module*, with its schedule, accumulation, clipping, loss scale and moving
    average.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[Group],
        config: TrainConfig,
        *,
        batches: int,
        epochs: int,
    ) -> None:
        """*batches* make an epoch, of which there are *epochs*.

        Each group has its peak rate as `lr`.
        """
        self._module = module
        self._optimiser = _optimiser(groups, config)
        self._peaks = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._batches, self._accumulate = batches, config.accumulate
        self._total_steps = epochs * math.ceil(batches / config.accumulate)
        self._warmup_share, self._clip_norm = config.warmup_share, config.clip_norm
        device = next(module.parameters()).device.type
        self._scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
        self.average = (
            AveragedModel(module, avg_fn=_averaged(config.ema_decay), use_buffers=True)
            if config.ema_decay > 0.0
            else None
        )
        self.steps = 0
        """Made so far."""
        self.schedule: Callable[[int], float] = self._warm_up_then_cosine
        """Factor of the peak rates, by the steps made so far."""

    @property
    def judged(self) -> nn.Module:
        """What the steps are made for: the module, or the moving average of it."""
        return self._module if self.average is None else self.average.module

    def learn(self, loss: Tensor, *, batch: int) -> None:
        """Take the gradient of the mean *loss* of the epoch's batch number *batch*, from 0; a step
        if it is the last of its group.
        """
        first = batch - batch % self._accumulate
        group_size = min(self._accumulate, self._batches - first)
        self._scaler.scale(loss / group_size).backward()  # type: ignore[no-untyped-call]
        if self.steps_after(batch):
            self._step()

    def steps_after(self, batch: int) -> bool:
        """The epoch's batch number *batch*, from 0, is the last of its group, and a step follows."""
        return (batch + 1) % self._accumulate == 0 or batch + 1 == self._batches

    def _step(self) -> None:
        factor = self.rate()
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        if self._clip_norm > 0.0:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._module.parameters(), self._clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        if self.average is not None:
            self.average.update_parameters(self._module)

    def rate(self) -> float:
        """Factor of the peak learning rates for the next step."""
        return self.schedule(self.steps)

    def _warm_up_then_cosine(self, steps: int) -> float:
        """Linear from 0, then a cosine to 0."""
        warmup = max(1, round(self._warmup_share * self._total_steps))
        if steps < warmup:
            return (steps + 1) / warmup
        return 0.5 * (
            1.0 + math.cos(math.pi * (steps - warmup) / max(1, self._total_steps - warmup))
        )

    @property
    def head_rate(self) -> float:
        """The learning rate of the head in the next step."""
        return self._peaks[0] * self.rate()

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs to go on, but for the module itself."""
        found = {"steps": torch.tensor(self.steps)}
        for index, state in self._optimiser.state_dict()["state"].items():
            found |= {
                f"optimiser.{index}.{key}": value
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        scale = self._scaler.state_dict()
        if scale:
            found["scale"] = torch.tensor(
                [scale["scale"], scale["_growth_tracker"]], dtype=torch.float64
            )
        if self.average is not None:
            found |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state that `tensors` returned."""
        self.steps = int(tensors["steps"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in within(tensors, "optimiser.").items():
            index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": states})
        if "scale" in tensors:
            scale, tracker = tensors["scale"].tolist()
            self._scaler.load_state_dict(
                {**self._scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)}
            )
        if self.average is not None:
            self.average.load_state_dict(within(tensors, "average."))


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of *tensors* whose names begin with *prefix*, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def stages(network: Network) -> dict[str, nn.Module]:
    """The modules directly below `features` that have parameters, in order."""
    return {
        name: module
        for name, module in network.features.named_children()
        if any(True for _ in module.parameters())
    }


def frozen_modules(network: Network, freeze: str) -> list[nn.Module]:
    """The modules that *freeze*, as in `TrainConfig`, names.

    Raises `ConfigError` with the names that there are.
    """
    if freeze in ("none", "features"):
        return [network.features] if freeze == "features" else []
    children = dict(network.features.named_children())
    names = list(children)
    found: list[nn.Module] = []
    for part in freeze.split(","):
        first, _, last = part.partition("..")
        last = last or first
        if first not in names or last not in names or names.index(first) > names.index(last):
            raise ConfigError(
                f"freeze is {freeze}: {part} is no part of the network; expected none, features, or"
                f" some of {', '.join(names)}"
            )
        found += [children[name] for name in names[names.index(first) : names.index(last) + 1]]
    return found


def set_training(network: Network, frozen: Iterable[nn.Module], *, freeze_statistics: bool) -> None:
    """*network* in training mode, but for what is *frozen*, and for batch normalisation where its
    statistics are.
    """
    network.train()
    for module in frozen:
        module.eval()
    if freeze_statistics:
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.eval()


def parameter_groups(network: Network, config: TrainConfig) -> list[Group]:
    """What is trained of *network*, by stage from the last to the first, at rates that fall by
    `layer_decay`.
    """
    if config.layer_decay == 1.0:
        return decayed_groups(network.parameters(), config.learning_rate, config.weight_decay)
    groups = decayed_groups(network.head.parameters(), config.learning_rate, config.weight_decay)
    rate, own = (
        config.learning_rate,
        [parameter for key, parameter in network.features.named_parameters() if "." not in key],
    )
    for stage in reversed(stages(network).values()):
        rate *= config.layer_decay
        groups += decayed_groups(stage.parameters(), rate, config.weight_decay)
    return groups + decayed_groups(own, rate, config.weight_decay)


def decayed_groups(
    parameters: Iterable[nn.Parameter], rate: float, weight_decay: float
) -> list[Group]:
    """Weights decay; biases and the parameters of normalisation do not.

    Source: He et al. 2018, "Bag of Tricks", section 3.1.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[Group] = [
        {
            "params": [parameter for parameter in trained if parameter.ndim >= 2],
            "weight_decay": weight_decay,
            "lr": rate,
        },
        {
            "params": [parameter for parameter in trained if parameter.ndim < 2],
            "weight_decay": 0.0,
            "lr": rate,
        },
    ]
    return [group for group in groups if group["params"]]


def _optimiser(groups: list[Group], config: TrainConfig) -> Optimizer:
    if config.optimiser == "sgd":
        return SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)
    return AdamW(groups, lr=config.learning_rate)


def _averaged(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The next moving average of a tensor.

    Source: the warm-up of TensorFlow's `ExponentialMovingAverage`.
    """

    def update(average: Tensor, value: Tensor, steps: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return value
        now = min(decay, (1.0 + float(steps)) / (10.0 + float(steps)))
        return torch.lerp(value, average, now)

    return update
