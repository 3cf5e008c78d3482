"""Batches handed from process to process through memory that both see: pipes would take longer than making them."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamp.errors import LampError

AT_ONCE = 1 << 30
"""Bytes in one call; systems write no more than 2 GiB in one."""


@dataclass(frozen=True)
class Handed:
    """A value but for its tensors' contents, which are in a slab."""

    head: bytes
    sizes: tuple[int, ...]
    """Of the tensors. [bytes]"""


class Slab:
    """A file without a name, in memory where the system can do that, for one value at a time.

    It goes to a process when that is started, and is gone when the last one that has it has ended, however it ends.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """
        Args:
            descriptor: Of a slab that another process has made; None: makes one.
        """
        if descriptor is None and hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("lamp-batch")
        made = tempfile.TemporaryFile(buffering=0) if descriptor is None else open(descriptor, "r+b", buffering=0)  # noqa: SIM115
        self._file: io.FileIO = made  # pyright: ignore[reportAttributeAccessIssue]

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is being started gets it opened."""
        return _opened, (reduction.DupFd(self._file.fileno()),)

    def put(self, value: object) -> Handed:
        """Writes the contents of a value's tensors over what is here, and returns the rest."""
        contents: list[pickle.PickleBuffer] = []
        head = io.BytesIO()
        _Pickler(head, protocol=5, buffer_callback=contents.append).dump(value)
        raw = [content.raw() for content in contents]
        self._all(self._file.write, raw)
        return Handed(head.getvalue(), tuple(map(len, raw)))

    def take(self, handed: Handed) -> Any:
        """The value that was put here; a copy of its own."""
        contents = [np.empty(size, np.uint8) for size in handed.sizes]
        self._all(self._file.readinto, [memoryview(content) for content in contents])
        return pickle.loads(handed.head, buffers=contents)

    def _all(self, move: Callable[[memoryview], int], contents: Sequence[memoryview]) -> None:
        """Writes or reads from the start on, in as many calls as it takes."""
        self._file.seek(0)
        for content in contents:
            done = 0
            while done < len(content):
                moved = move(content[done : done + AT_ONCE])
                if not moved:
                    raise LampError(f"{len(content) - done} bytes of a batch are missing where a worker has put it")
                done += moved


def _opened(descriptor: Any) -> Slab:
    return Slab(descriptor.detach())


class _Pickler(pickle.Pickler):
    """Leaves the contents of tensors and arrays out of the stream."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return _tensor, (flat.numpy(), value.dtype, tuple(value.shape))


def _tensor(contents: np.ndarray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(contents).view(dtype).reshape(shape)
