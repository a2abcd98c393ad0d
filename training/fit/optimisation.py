"""The optimiser: which parameters are trained at which rates, its schedule and moving average."""

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
BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the only common base of batch normalisations
Group = dict[str, object]


class Learner:
    """The optimiser of *module*, with its schedule and moving average.

    It also accumulates and clips gradients, and scales the loss.
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
        self.module = module
        self._optimiser: Optimizer = (
            SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)
            if config.optimiser == "sgd"
            else AdamW(groups, lr=config.learning_rate)
        )
        self._peaks = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._batches, self._config = batches, config
        self._total_steps = epochs * math.ceil(batches / config.accumulate)
        self._warmup_steps = max(1, round(config.warmup_share * self._total_steps))
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
        self.gradient_norms: dict[str, float] = {}
        """By module: the norm of its gradient in the last step of the epoch, before clipping."""

    @property
    def judged(self) -> nn.Module:
        """The module whose accuracy counts: the trained one, or its moving average."""
        return self.module if self.average is None else self.average.module

    def learn(self, loss: Tensor, *, batch: int) -> None:
        """Add the gradient of the mean *loss* of batch number *batch* of the epoch, from 0.

        The last batch of a group makes a step.
        """
        first = batch - batch % self._config.accumulate
        group_size = min(self._config.accumulate, self._batches - first)
        self._scaler.scale(loss / group_size).backward()  # type: ignore[no-untyped-call]
        if not self.steps_after(batch):
            return
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self.rate()
        last = batch + 1 == self._batches
        if last or self._config.clip_norm > 0.0:
            self._scaler.unscale_(self._optimiser)
        if last:
            self.gradient_norms = gradient_norms(self.module)
        if self._config.clip_norm > 0.0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        if self.average is not None:
            self.average.update_parameters(self.module)

    def steps_after(self, batch: int) -> bool:
        """Whether batch number *batch* of the epoch, from 0, is the last of its group."""
        return (batch + 1) % self._config.accumulate == 0 or batch + 1 == self._batches

    def rate(self) -> float:
        """Factor of the peak learning rates for the next step."""
        return self.schedule(self.steps)

    def _warm_up_then_cosine(self, steps: int) -> float:
        """Linear to 1 over the warm-up, then a cosine towards 0."""
        if steps < self._warmup_steps:
            return (steps + 1) / self._warmup_steps
        cosine_steps = max(1, self._total_steps - self._warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * (steps - self._warmup_steps) / cosine_steps))

    @property
    def head_rate(self) -> float:
        """The learning rate of the head in the next step: the first group is the head."""
        return self._peaks[0] * self.rate()

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs, except the module itself."""
        tensors = {"steps": torch.tensor(self.steps)}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {
                f"optimiser.{index}.{key}": value
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        # Empty without a loss scale.
        for key, value in self._scaler.state_dict().items():
            tensors[f"scaler.{key}"] = torch.tensor(value)
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state that `tensors` returned."""
        self.steps = int(tensors["steps"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in within(tensors, "optimiser.").items():
            index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": states})
        if scaler := within(tensors, "scaler."):
            self._scaler.load_state_dict({key: value.item() for key, value in scaler.items()})
        if self.average is not None:
            self.average.load_state_dict(within(tensors, "average."))


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of *tensors* whose names begin with *prefix*, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def frozen_modules(network: Network, freeze: str) -> list[nn.Module]:
    """The modules that *freeze*, as in `TrainConfig`, names.

    Raises `ConfigError` with the valid names.
    """
    if freeze in ("none", "features"):
        return [network.features] if freeze == "features" else []
    children = dict(network.features.named_children())
    names = list(children)
    frozen: list[nn.Module] = []
    for part in freeze.split(","):
        first, _, last = part.partition("..")
        last = last or first
        if first not in names or last not in names or names.index(first) > names.index(last):
            raise ConfigError(
                f"freeze is {freeze}: {part} is not a part of the network; expected none, features,"
                f" or some of {', '.join(names)}"
            )
        frozen += [children[name] for name in names[names.index(first) : names.index(last) + 1]]
    return frozen


def set_training(network: Network, frozen: Iterable[nn.Module], *, freeze_statistics: bool) -> None:
    """Put *network* in training mode, except what is *frozen*.

    With *freeze_statistics*, every batch normalisation stays in evaluation mode too.
    """
    network.train()
    for module in frozen:
        module.eval()
    for module in network.modules():
        if freeze_statistics and isinstance(module, BatchNorm):
            module.eval()


def parameter_groups(network: Network, config: TrainConfig) -> list[Group]:
    """The trained parameters of *network*, stage by stage from the last to the first.

    The rates fall by `layer_decay`.
    """
    rate, weight_decay = config.learning_rate, config.weight_decay
    if config.layer_decay == 1.0:
        return decayed_groups(network.parameters(), rate, weight_decay)
    groups = decayed_groups(network.head.parameters(), rate, weight_decay)
    for stage in reversed(list(network.features.children())):
        if any(True for _ in stage.parameters()):
            rate *= config.layer_decay
            groups += decayed_groups(stage.parameters(), rate, weight_decay)
    own = network.features.parameters(recurse=False)
    return groups + decayed_groups(own, rate, weight_decay)


def decayed_groups(
    parameters: Iterable[nn.Parameter], rate: float, weight_decay: float
) -> list[Group]:
    """Weights decay; biases and the parameters of normalisation do not.

    Source: He et al. 2018, "Bag of Tricks", section 3.1.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    kinds = (
        ([parameter for parameter in trained if parameter.ndim >= 2], weight_decay),
        ([parameter for parameter in trained if parameter.ndim < 2], 0.0),
    )
    return [
        {"params": chosen, "weight_decay": decay, "lr": rate} for chosen, decay in kinds if chosen
    ]


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """The norm of the gradient of each module that has parameters of its own, by its name.

    What has no gradient is left out, and so is what half precision could not hold.
    """
    gradients = {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if not gradients:
        return {}
    # One read for all of them: each read waits for a GPU.
    norms = torch.stack([torch.linalg.vector_norm(part) for part in gradients.values()]).tolist()
    squares: dict[str, float] = {}
    for name, norm in zip(gradients, norms, strict=True):
        owner = name.rpartition(".")[0]
        squares[owner] = squares.get(owner, 0.0) + norm * norm
    return {
        owner: float(f"{math.sqrt(square):.4g}")
        for owner, square in squares.items()
        if math.isfinite(square)
    }


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
