"""What a run records about gradients, against gradients that are known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.training.small_runs import TINY
from training.fit.optimisation import Learner, gradient_norms


def test_a_norm_is_over_weight_and_bias_of_a_module() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    module[0].weight.grad = torch.tensor([[3.0, 0.0]])
    module[0].bias.grad = torch.tensor([4.0])
    assert gradient_norms(module) == {"0": 5.0}
    assert gradient_norms(nn.Linear(1, 1)) == {}


def test_what_half_precision_could_not_hold_is_left_out() -> None:
    """JSON has no infinity, so it may not stand in `metrics.jsonl`."""
    module = nn.Linear(1, 1)
    module.weight.grad = torch.tensor([[float("inf")]])
    module.bias.grad = torch.tensor([1.0])
    assert gradient_norms(module) == {}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_last_step_is_recorded_before_clipping(accumulate: int) -> None:
    """Two batches; the gradient of the last is 10 and is clipped to 0.1."""
    module = nn.Linear(1, 1, bias=False)
    config = dataclasses.replace(TINY, clip_norm=0.1, accumulate=accumulate)
    groups: list[dict[str, object]] = [{"params": list(module.parameters()), "lr": 1e-9}]
    learner = Learner(module, groups, config, batches=2, epochs=1)
    for batch in range(2):
        learner.learn(10.0 * module(torch.ones(1, 1)).sum(), batch=batch)
        assert bool(learner.gradient_norms) == (batch == 1)
    assert learner.gradient_norms == {"": pytest.approx(10.0)}
