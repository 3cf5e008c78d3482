"""The processes of a training: this one alone, or those that `torchrun` or `accelerate launch` has started together.

The process number 0 is the main one: it alone prints, writes and decides by the clock.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lamp.data.dataloader import BatchShare
from lamp.errors import ConfigError, FailedElsewhereError, MissingDependencyError
from lamp_client.child_processes import end_with_launcher

T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long processes wait for the main one, which may compute features meanwhile."""
INSTALL = "pip install 'lamp-vla[train]'"


class DistributedContext:
    """The processes that train together. This class is one process alone, as without any launcher."""

    rank = 0
    world_size = 1
    group: Any = None
    """A CPU process group for small tensors and files; None where there is one process."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> BatchShare:
        """This process's share of every batch."""
        return BatchShare(index=self.rank, of=self.world_size)

    def device(self, requested: str) -> str:
        """Returns this process's device, where `requested` is what all of them compute on."""
        return requested

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds up each value over all processes, in float64 (all-reduce)."""
        return dict(values)

    def broadcast(self, value: T) -> T:
        """Returns the main process's value, which must be picklable, in every process."""
        return value

    def barrier(self) -> None:
        """Waits until all processes have come here."""

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Runs `work` in the main process while the others wait; where it fails, all fail."""
        return work()

    def from_main(self, work: Callable[[], T]) -> T:
        """Runs `work` in the main process, and returns its result, which must be picklable, in every process."""
        return work()


class MultiProcessContext(DistributedContext):
    """One of several processes, set up by Accelerate over torch.distributed."""

    def __init__(self, *, cpu: bool) -> None:
        """
        Raises:
            MissingDependencyError: Accelerate is not installed.
        """
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise MissingDependencyError(
                f"training on several processes needs package {error.name!r}; install it: {INSTALL}"
            ) from None
        if "TORCHELASTIC_RUN_ID" in os.environ:  # `torchrun` ends its processes only where it can still do so itself
            end_with_launcher()
        state = PartialState(cpu=cpu)
        self.rank, self.world_size = state.process_index, state.num_processes
        self._cpu, self._device = cpu, str(state.device)
        # Small numbers and waiting go over a group of their own: on the CPU, and without the patience of the large one.
        self.group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        atexit.register(_leave)

    def device(self, requested: str) -> str:
        """
        Raises:
            ConfigError: One GPU is named, or another kind of device than before.
        """
        if torch.device(requested).index is not None:
            kind = torch.device(requested).type
            raise ConfigError(
                f"device {requested!r} given to {self.world_size} processes; expected {kind!r}: each takes its own."
            )
        if (requested == "cpu") != self._cpu:
            raise ConfigError(f"device {requested!r} given; these processes have begun on {self._device!r}.")
        return self._device

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = [value.detach().to("cpu", torch.float64).reshape(-1) for value in values.values()]
        total = torch.cat(parts)
        dist.all_reduce(total, group=self.group)
        summed = total.split([len(part) for part in parts])
        return {name: part.reshape(value.shape) for (name, value), part in zip(values.items(), summed, strict=True)}

    def broadcast(self, value: T) -> T:
        holder: list[Any] = [value if self.is_main else None]
        dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def barrier(self) -> None:
        dist.barrier(group=self.group)

    def on_main(self, work: Callable[[], T]) -> T | None:
        result, fault = None, None
        if self.is_main:
            try:
                result = work()
            except Exception as error:
                fault = error
        message = self.broadcast(None if fault is None else f"{type(fault).__name__}: {fault}")
        if fault is not None:
            raise fault
        if message is not None:
            raise FailedElsewhereError(message)
        return result

    def from_main(self, work: Callable[[], T]) -> T:
        return cast(T, self.broadcast(self.on_main(work)))


SINGLE_PROCESS = DistributedContext()


def world_size() -> int:
    """The number of processes that a launcher has started, by its environment variables."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def distributed_context(device: str) -> DistributedContext:
    """Returns the processes of this training; several of them meet when this is first called.

    Args:
        device: What they compute on, such as `cpu` or `cuda`.
    """
    return _launched(torch.device(device).type == "cpu") if world_size() > 1 else SINGLE_PROCESS


@cache
def _launched(cpu: bool) -> MultiProcessContext:
    return MultiProcessContext(cpu=cpu)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
