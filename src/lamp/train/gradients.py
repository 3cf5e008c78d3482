"""How large gradients are, in all and by module, and cutting them down to a largest norm: one pass over the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

DEPTH = 2
"""Components of a parameter's name that say its module: `action_expert.blocks`."""


@dataclass(frozen=True, kw_only=True)
class GradientNorms:
    """Norms of a step's gradients, before they are cut down."""

    total: Float[Tensor, ""]
    by_module: Float[Tensor, " m"]


class Gradients:
    """The gradients of named parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = list(parameters.values())
        modules = [".".join(name.split(".")[:DEPTH]) for name in parameters]
        self.modules = tuple(dict.fromkeys(modules))
        device = self._parameters[0].device
        self._member = torch.tensor([[module == name for name in self.modules] for module in modules], device=device)
        self._nothing = torch.zeros((), device=device)

    @torch.no_grad()
    def clip(self, largest: float) -> GradientNorms:
        """Scales the gradients so that their norm over all parameters is at most `largest`; asks the device for nothing."""
        norms = iter(_norms([parameter.grad for parameter in self._parameters if parameter.grad is not None]))
        each = [self._nothing if parameter.grad is None else next(norms) for parameter in self._parameters]
        stacked = torch.stack([norm.to(self._nothing) for norm in each])
        total = torch.linalg.vector_norm(stacked)
        nn.utils.clip_grads_with_norm_(self._parameters, largest, total, foreach=True)
        squares = (self._member * stacked.square()[:, None]).sum(0)
        return GradientNorms(total=total, by_module=squares.sqrt())


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """The norm of each gradient; of one that is sharded over processes, that of the whole."""
    # One fused call; torch does not list it among its public names.
    found = list(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
    if not found or not hasattr(found[0], "full_tensor"):  # a DTensor's method; the class takes long to import
        return found
    sharded: Any = torch.stack(found)
    return list(sharded.full_tensor().unbind())
