"""The processes of a training: this one alone, or those that `torchrun` or `accelerate launch` has started together.

The process number 0 is the main one: it alone prints, writes and decides by the clock.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from lamp.data.dataloader import Share
from lamp.errors import ConfigError, FailedElsewhereError, MissingDependencyError

T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long processes wait for the main one, which may compute features meanwhile."""
INSTALL = "pip install 'lamp-vla[train]'"


@runtime_checkable
class Processes(Protocol):
    """What a training asks of its processes."""

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def group(self) -> dist.ProcessGroup | None:
        """For small things and files; on the CPU. None where there is one process."""
        ...

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        ...

    @property
    def share(self) -> Share:
        """The part of every batch that is this process's."""
        ...

    def device(self, asked: str) -> str:
        """Returns this process's device, where `asked` is what all of them compute on."""
        ...

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds up each value over all processes, in float64."""
        ...

    def told(self, value: T) -> T:
        """Returns the main process's value, which must be picklable, in all."""
        ...

    def wait(self) -> None:
        """Waits until all processes are here."""
        ...

    def only_main(self, work: Callable[[], T]) -> T | None:
        """Lets the main process work while the others wait; where it fails, all do."""
        ...


class Single:
    """One process, as without any launcher."""

    index, count, main, share, group = 0, 1, True, Share(), None

    def device(self, asked: str) -> str:
        return asked

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(values)

    def told(self, value: T) -> T:
        return value

    def wait(self) -> None:
        pass

    def only_main(self, work: Callable[[], T]) -> T | None:
        return work()


class Launched:
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
        state = PartialState(cpu=cpu)
        self.index, self.count = state.process_index, state.num_processes
        self._cpu, self._device = cpu, str(state.device)
        # Small numbers and waiting go over a group of their own: on the CPU, and without the patience of the large one.
        self.group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        atexit.register(_leave)

    @property
    def main(self) -> bool:
        return self.index == 0

    @property
    def share(self) -> Share:
        return Share(index=self.index, of=self.count)

    def device(self, asked: str) -> str:
        """
        Raises:
            ConfigError: One GPU is named, or another kind of device than before.
        """
        if torch.device(asked).index is not None:
            kind = torch.device(asked).type
            raise ConfigError(
                f"device {asked!r} given to {self.count} processes; expected {kind!r}: each takes its own."
            )
        if (asked == "cpu") != self._cpu:
            raise ConfigError(f"device {asked!r} given; these processes have begun on {self._device!r}.")
        return self._device

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = [value.detach().to("cpu", torch.float64).reshape(-1) for value in values.values()]
        total = torch.cat(parts)
        dist.all_reduce(total, group=self.group)
        summed = total.split([len(part) for part in parts])
        return {name: part.reshape(value.shape) for (name, value), part in zip(values.items(), summed, strict=True)}

    def told(self, value: T) -> T:
        holder: list[Any] = [value if self.main else None]
        dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def wait(self) -> None:
        dist.barrier(group=self.group)

    def only_main(self, work: Callable[[], T]) -> T | None:
        found, fault = None, None
        if self.main:
            try:
                found = work()
            except Exception as error:
                fault = error
        message = self.told(None if fault is None else f"{type(fault).__name__}: {fault}")
        if fault is not None:
            raise fault
        if message is not None:
            raise FailedElsewhereError(message)
        return found


SINGLE = Single()


def started() -> int:
    """How many processes a launcher has started, by its environment variables."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes(device: str) -> Processes:
    """Returns the processes of this training; where there are several, they meet when this is first called.

    Args:
        device: What they compute on, such as `cpu` or `cuda`.
    """
    return _meet(torch.device(device).type == "cpu") if started() > 1 else SINGLE


@cache
def _meet(cpu: bool) -> Launched:
    return Launched(cpu=cpu)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
