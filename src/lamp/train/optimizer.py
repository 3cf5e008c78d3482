"""AdamW with the cosine schedule, gradient norms and clipping, and the exponential moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.errors import ConfigError
from lamp.train.shards import filled, is_sharded, local

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
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            rate = self.rates.of(name)
            groups.setdefault(self.lr if rate is None else rate, []).append(parameter)
        return [{"params": members, "lr": rate, PEAK: rate} for rate, members in groups.items()]

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


DEPTH = 2
"""Components of a parameter's name that say its module: `action_expert.blocks`."""


@dataclass(frozen=True, kw_only=True)
class GradientNorms:
    """Norms of a step's gradients, before they are cut down."""

    total: Float[Tensor, ""]
    by_module: Float[Tensor, " m"]

    def __iter__(self) -> Iterator[Tensor]:
        """Both, the total first."""
        yield from (self.total, self.by_module)


class Gradients:
    """The gradients of named parameters, each of which may be shared out over processes (FSDP2)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = list(parameters.values())
        modules = [".".join(name.split(".")[:DEPTH]) for name in parameters]
        self.modules = tuple(dict.fromkeys(modules))
        device = self._parameters[0].device
        self._member = torch.tensor([[module == name for name in self.modules] for module in modules], device=device)

    @torch.no_grad()
    def clip(self, largest: float) -> GradientNorms:
        """Scales the gradients so that their norm over all parameters is at most `largest`; asks the device for nothing."""
        given = [parameter.grad for parameter in self._parameters]
        gradients = [gradient for gradient in given if gradient is not None]
        shards, norms = [local(gradient) for gradient in gradients], iter(_norms(gradients))
        nothing = self._member.new_zeros((), dtype=torch.float32)
        each = torch.stack([nothing if gradient is None else next(norms).to(nothing) for gradient in given])
        total = torch.linalg.vector_norm(each)
        if shards:
            # As torch cuts them; the number goes to each device that has gradients.
            torch._foreach_mul_(shards, (largest / (total + 1e-6)).clamp(max=1.0))  # pyright: ignore[reportPrivateImportUsage]
        squares = (self._member * each.square()[:, None]).sum(0)
        return GradientNorms(total=total, by_module=squares.sqrt())


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """The norm of each gradient; of one that is shared out, that of all its parts."""
    if not gradients:
        return []
    # One fused call; torch does not list it among its public names.
    norms = list(torch._foreach_norm([local(gradient) for gradient in gradients]))  # pyright: ignore[reportPrivateImportUsage]
    if not is_sharded(gradients[0]):
        return norms
    first: Any = gradients[0]
    squares = torch.stack(norms).square()
    torch.distributed.all_reduce(squares, group=first.device_mesh.get_group())
    return list(squares.sqrt().unbind())
