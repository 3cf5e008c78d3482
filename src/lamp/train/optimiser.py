"""AdamW and the cosine schedule, over the real optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Tables III and IV: AdamW with betas (0.9, 0.95); `eps` is not in the paper."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-8
    eps: float = 1e-8

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """Builds the optimizer for named parameters, in the order of the mapping."""
        return torch.optim.AdamW(
            list(parameters.values()),
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            eps=self.eps,
            foreach=True,
        )


def cosine(fraction: float, *, lr: float, min_lr: float) -> float:
    """Returns the learning rate after `fraction` of the run: from `lr` at 0 to `min_lr` at 1, no warm-up (Tables III and IV)."""
    fraction = min(max(fraction, 0.0), 1.0)
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * fraction))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def optimiser_tensors(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Returns the optimizer's state as named tensors: `<parameter>:<entry>`."""
    return {
        f"{name}:{entry}": value
        for name, parameter in parameters.items()
        for entry, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimiser_tensors` returned."""
    for key, value in tensors.items():
        name, _, entry = key.rpartition(":")
        parameter = parameters[name]
        place = "cpu" if entry == "step" else parameter.device
        optimiser.state[parameter][entry] = value.to(place).clone()
