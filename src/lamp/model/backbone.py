"""What the experts expect of a vision-language backbone: frozen, self-describing, tokens in and nothing else."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from lamp.types import Encoded, Observations

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Backbone(Protocol):
    """z_t = phi_vl(O_t, l), frozen in both stages. An `nn.Module`."""

    @property
    def width(self) -> int:
        """Width of its tokens."""
        ...

    @property
    def key(self) -> str:
        """Hash of the weights and settings: equal keys mean equal tokens, so features can be cached under it."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """What a checkpoint records about it, as JSON values: kind, revision, cameras with sizes, prompt, feature layer."""
        ...

    def encode(self, observations: Observations) -> Encoded:
        """Returns the tokens of a batch of observations."""
        ...


@runtime_checkable
class Accelerating(Protocol):
    """A backbone that has a faster way to the same tokens, for when its weights no longer change."""

    def accelerate(self) -> None:
        """Takes it from now on."""
        ...


def frozen(module: Module) -> Module:
    """Returns the module itself, in evaluation mode and without gradients."""
    return module.eval().requires_grad_(False)
