"""How large gradients are, in all and by module, and cutting them down to a largest norm: one pass over the gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.train.shards import is_sharded, local

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
        there = [gradient for gradient in given if gradient is not None]
        here, found = [local(gradient) for gradient in there], iter(_norms(there))
        nothing = self._member.new_zeros((), dtype=torch.float32)
        each = torch.stack([nothing if gradient is None else next(found).to(nothing) for gradient in given])
        total = torch.linalg.vector_norm(each)
        if here:
            # As torch cuts them; the number goes to each device that has gradients.
            torch._foreach_mul_(here, (largest / (total + 1e-6)).clamp(max=1.0))  # pyright: ignore[reportPrivateImportUsage]
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
