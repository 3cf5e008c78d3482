"""AdamW and the cosine schedule, over the real optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from lamp.errors import ConfigError
from lamp.train.shards import filled

PEAK = "peak"
"""Of a parameter group: the learning rate that its cosine starts at."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of single modules, at the start of the cosine; None: the optimizer's `lr`."""

    motion_expert: float | None = None
    guidance: float | None = None
    action_expert: float | None = None
    vlm: float | None = None
    """Of the vision-language model's adapters."""

    def __post_init__(self) -> None:
        for item in fields(self):
            rate = getattr(self, item.name)
            if rate is not None and rate < 0.0:
                raise ConfigError(f"the learning rate of {item.name} is {rate}; it must not be negative.")

    def of(self, parameter: str) -> float | None:
        """The rate of the module that a parameter belongs to, by the parameter's name."""
        return getattr(self, parameter.split(".")[0], None)

    def check(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """
        Raises:
            ConfigError: A module has a rate of its own and is not trained.
        """
        trained = list(dict.fromkeys(name.split(".")[0] for name in parameters))
        for item in fields(self):
            if getattr(self, item.name) is not None and item.name not in trained:
                raise ConfigError(
                    f"a learning rate of {item.name} is given, which this run does not train; it trains {', '.join(trained)}."
                )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Tables III and IV: AdamW with betas (0.9, 0.95); `eps` is not in the paper."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-8
    eps: float = 1e-8
    rates: Rates = field(default_factory=Rates)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Sorts named parameters into groups by learning rate, in the order of the mapping.

        Raises:
            ConfigError: A module has a rate of its own and is not trained.
        """
        self.rates.check(parameters)
        found: dict[float, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            rate = self.rates.of(name)
            found.setdefault(self.lr if rate is None else rate, []).append(parameter)
        return [{"params": members, "lr": rate, PEAK: rate} for rate, members in found.items()]

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """Builds the optimizer for named parameters."""
        return torch.optim.AdamW(
            self.groups(parameters),
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


def set_learning_rates(optimiser: torch.optim.Optimizer, fraction: float, *, min_lr: float) -> None:
    """Puts every group's learning rate to where its cosine is after `fraction` of the run."""
    for group in optimiser.param_groups:
        group["lr"] = cosine(fraction, lr=group[PEAK], min_lr=min(min_lr, group[PEAK]))


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
    """Puts back what `optimiser_tensors` returned, whole or as these parameters are sharded."""
    for key, value in tensors.items():
        name, _, entry = key.rpartition(":")
        parameter = parameters[name]
        if entry == "step":
            optimiser.state[parameter][entry] = value.to("cpu").clone()
        else:
            optimiser.state[parameter][entry] = filled(torch.zeros_like(parameter.detach()), value)
