"""The processes that train one run together: this one alone, or those that torchrun started, on one
host or several.

Each process takes its share of every batch, and gradients are averaged over all. Whatever is read,
decided or written once, the main process does, and tells the others: two file systems or two random
states must not make two runs. The tensors that are exchanged for that are small and on the CPU;
gradients take the way that DistributedDataParallel gives them, which is NCCL on GPUs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from models.errors import ConfigError, LoupeError, TrainingError
from training.settings import TorchrunSettings

PATIENCE = timedelta(hours=4)
"""For the others, while the main process checks every image of a large data set."""
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo/transport")
"""Found in the message of the plain `RuntimeError` that gloo raises when another process has ended."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that train together."""

    rank: int = 0
    """Among all; 0 is the main process."""
    count: int = 1
    local_rank: int = 0
    """Among those of this host; its GPU has the same number."""
    local_count: int = 1

    @property
    def main(self) -> bool:
        """It is this process that writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes: its GPU, or the CPU where there is none."""
        return (
            torch.device("cuda", self.local_rank)
            if torch.cuda.is_available()
            else torch.device("cpu")
        )

    def shared(self, value: bytes) -> bytes:
        """The main process's *value*, in every process."""
        if self.count == 1:
            return value
        length = torch.tensor(len(value))
        dist.broadcast(length, src=0)
        content = (
            torch.frombuffer(bytearray(value), dtype=torch.uint8)
            if self.main and value
            else torch.empty(int(length), dtype=torch.uint8)
        )
        if len(content):
            dist.broadcast(content, src=0)
        return content.numpy().tobytes()

    def summed(self, values: Tensor) -> Tensor:
        """*values*, a tensor on the CPU, summed over all processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gathered(self, value: Tensor) -> list[Tensor]:
        """*value*, a tensor on the CPU and of one shape everywhere, of each process in order."""
        if self.count == 1:
            return [value]
        found = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(found, value)
        return found

    def collected(self, value: bytes) -> list[bytes]:
        """The *value* of each process in order, in every process."""
        if self.count == 1:
            return [value]
        lengths = [int(length) for length in self.gathered(torch.tensor(len(value)))]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(value)] = torch.tensor(list(value), dtype=torch.uint8)
        return [
            content[:length].numpy().tobytes()
            for content, length in zip(self.gathered(padded), lengths, strict=True)
        ]

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of *tensors* that has fractions by its mean over all processes."""
        if self.count > 1:
            for tensor in tensors:
                if tensor.is_floating_point():
                    tensor.copy_(self.summed(tensor.detach().cpu()) / self.count)

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of *tensors* by the main process's."""
        if self.count > 1:
            for tensor in tensors:
                content = tensor.detach().cpu().contiguous()
                dist.broadcast(content, src=0)
                tensor.copy_(content)

    @contextmanager
    def one_fate(self) -> Iterator[None]:
        """If the main process fails inside, all processes end: it raises the error, the others exit
        quietly.
        """
        try:
            yield
        except LoupeError:
            self.shared(b"failed")
            raise
        if self.shared(b"") and not self.main:
            # Only once the main process is gone: torchrun ends it as soon as another one has ended,
            # and it has something to say. Then torchrun ends this one, which must not answer with a
            # traceback; and where it is called from a thread, it has no handler.
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with suppress(RuntimeError):
                self.shared(b"")
            raise SystemExit(1)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run; within, they can speak to each other.

    Raises `ConfigError` if there are more than GPUs.

    When another process ends in the middle, `TrainingError` says so: that one has said why.
    """
    found = TorchrunSettings()
    if found.world_size == 1 or not found.master_addr:
        yield ALONE
        return
    processes = Processes(found.rank, found.world_size, found.local_rank, found.local_world_size)
    # Whoever joined them before keeps them.
    own = not dist.is_initialized()
    if own:
        _join(processes)
    try:
        yield processes
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(
            text in str(error) for text in PEER_LOST
        ):
            raise
        raise TrainingError(
            f"process {processes.rank} of {processes.count}: another process of the run has ended;"
            " see what it said"
        ) from error
    if own:
        # Not after an error: the others may be anywhere then, and leaving together would wait for
        # them.
        dist.destroy_process_group()


def _join(processes: Processes) -> None:
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes.local_count:
        raise ConfigError(
            f"torchrun started {processes.local_count} processes on a machine with {gpus} GPUs; say"
            f" --nproc-per-node {gpus}"
        )
    if gpus:
        torch.cuda.set_device(processes.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)


def share_of_batch(batch_size: int, processes: Processes) -> int:
    """Images that each process takes of a batch.

    Raises `ConfigError` unless all take as many, and two or more.
    """
    share, rest = divmod(batch_size, processes.count)
    if rest or share < 2:
        valid = processes.count * max(2, share)
        raise ConfigError(
            f"batch_size is {batch_size}, for {processes.count} processes together; expected a"
            f" multiple of {processes.count}, {2 * processes.count} or more: --set"
            f" batch_size={valid}"
        )
    return share
