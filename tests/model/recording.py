"""What a CUDA graph can and cannot record, told without a GPU; and stand-ins for torch's CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamp.model.fast import CudaGraph

ASKING = (
    "lift_fresh",
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "repeat_interleave.Tensor",
    "item",
)
"""Operators that bring numbers from the host, or wait for numbers from the device; neither can be recorded."""


class NothingAsked(TorchDispatchMode):
    """Fails where an operator runs that a CUDA graph could not record."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        assert not any(name == asking or name.startswith(f"{asking}.") for asking in ASKING), f"{name} was called"
        booleans = func is torch.ops.aten.index.Tensor and any(x is not None and x.dtype == torch.bool for x in args[1])
        assert not booleans, "a tensor was indexed with a mask"
        self.ran += 1
        return func(*args, **(kwargs or {}))


class Replayed(CudaGraph):
    """Stands in for a recording: keeps the inputs' shapes."""

    made: ClassVar[list[Mapping[str, torch.Size]]] = []

    def __init__(self, function: Callable[..., Tensor], given: Mapping[str, Tensor | None]) -> None:
        self.function, self.shapes = function, self.shapes_of(given)
        self.made.append(self.shapes)

    def __call__(self, given: Mapping[str, Tensor | None]) -> Tensor:
        assert self.shapes_of(given) == self.shapes
        return self.function(**given)

    @staticmethod
    def shapes_of(given: Mapping[str, Tensor | None]) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in given.items() if tensor is not None}


class FakeCuda:
    """`torch.cuda`, as far as `CudaGraph` knows it: a replay computes again what was recorded, in the same places."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.capturing = False

    def install(self, monkeypatch: Any) -> None:
        for name in ("Stream", "current_stream", "stream", "graph", "CUDAGraph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    class Waiting:
        def __init__(self, events: list[str], name: str) -> None:
            self.events, self.name = events, name

        def wait_stream(self, other: Any) -> None:
            self.events.append(f"{self.name} waits for {other.name}")

    def Stream(self) -> Any:  # noqa: N802
        return self.Waiting(self.events, "side")

    def current_stream(self) -> Any:
        return self.Waiting(self.events, "main")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.events.append(f"on {stream.name}")
        yield
        self.events.append(f"off {stream.name}")

    class CUDAGraph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1

    @contextmanager
    def graph(self, graph: Any, *, capture_error_mode: str) -> Iterator[None]:
        self.events.append(f"recording, {capture_error_mode}")
        gc.collect()
        self.capturing = True
        yield
        self.capturing = False
        self.events.append("recorded")
