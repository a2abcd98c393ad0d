"""The processes that train one run together: one alone, or those that torchrun started.

Each process takes its share of every batch, and gradients are averaged over all. The main process
reads, decides and writes what is read, decided or written once, and sends the result to the others.
So two file systems or two random states cannot make two runs. These messages are small and travel
from CPU to CPU. DistributedDataParallel exchanges the gradients, on GPUs by NCCL.
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
"""How long processes wait while the main one checks every image of a large data set."""
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo/transport")
"""In the message of the plain `RuntimeError` that gloo raises when another process has ended."""


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
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU on a machine without one."""
        return (
            torch.device("cuda", self.local_rank)
            if torch.cuda.is_available()
            else torch.device("cpu")
        )

    def shared(self, value: bytes, *, source: int = 0) -> bytes:
        """The *value* of process *source*, by default the main one, in every process."""
        if self.count == 1:
            return value
        length = torch.tensor(len(value))
        dist.broadcast(length, src=source)
        content = (
            torch.frombuffer(bytearray(value), dtype=torch.uint8)
            if self.rank == source and value
            else torch.empty(int(length), dtype=torch.uint8)
        )
        if len(content):
            dist.broadcast(content, src=source)
        return content.numpy().tobytes()

    def collected(self, value: bytes) -> list[bytes]:
        """The *value* of each process in order, in every process."""
        return [self.shared(value, source=rank) for rank in range(self.count)]

    def summed(self, values: Tensor) -> Tensor:
        """*values*, a tensor on the CPU, summed over all processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

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
        """If the main process fails inside, all processes end.

        The main process raises its error, and the others exit without a message.
        """
        try:
            yield
        except LoupeError:
            self.shared(b"failed")
            raise
        if self.shared(b"") and not self.main:
            # torchrun ends all processes as soon as one has ended, so this one waits until the main
            # process has printed its error. The SIGTERM of torchrun must then not print a
            # traceback. In a thread, no handler can be set.
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with suppress(RuntimeError):
                self.shared(b"")
            raise SystemExit(1)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run. Inside the block they can exchange messages.

    Raises `ConfigError` if there are more processes than GPUs, and `TrainingError` if another
    process ends: that one has printed why.
    """
    found = TorchrunSettings()
    if found.world_size == 1 or not found.master_addr:
        yield ALONE
        return
    processes = Processes(found.rank, found.world_size, found.local_rank, found.local_world_size)
    # A caller may have joined the processes before, and leaves them itself.
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
        # Not after an error: it would wait for processes that have ended.
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
