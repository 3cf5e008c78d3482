"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lamp.train.shards import filled, local


class Ema:
    """Averages trained parameters: average += (1 - decay) (parameter - average), with a decay that grows over the first steps.

    The decay is min(decay, (1 + n) / (10 + n)) at the n-th update, so that a short run is not held at its random start. Of
    sharded parameters, each process averages its own part.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the parameters after optimizer step `step` (the first is 1)."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        # One fused call; torch does not list it among its public names.
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [local(value) for value in self.average.values()],
            [local(parameter.detach()) for parameter in self.parameters.values()],
            1.0 - decay,
        )

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Puts the averaged weights into the parameters for the duration of the block."""
        raw = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._assign(self.average)
        try:
            yield
        finally:
            self._assign(raw)

    def restore(self, average: Mapping[str, Tensor]) -> None:
        for name, value in average.items():
            filled(self.average[name], value)

    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            local(parameter.detach()).copy_(local(values[name]))
