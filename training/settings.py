"""What torchrun tells each process that it starts, through the environment.

The only module of `training` that reads it.
"""

from __future__ import annotations

import os

from pydantic_settings import BaseSettings, SettingsConfigDict


class TorchrunSettings(BaseSettings):
    """The place of this process among those that train together.

    Source: PyTorch, "torchrun", section "Environment Variables".
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    rank: int = 0
    """Among all processes."""
    world_size: int = 1
    """Number of processes on all hosts."""
    local_rank: int = 0
    """Among the processes of this host."""
    local_world_size: int = 1
    """Number of processes on this host."""
    master_addr: str = ""
    """Where the first process listens; without it there is nobody to join."""


def choose_torch_for_keras() -> None:
    """Let Keras run on torch, unless the environment says otherwise; it reads this on import."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
