"""How weights, gradients and the optimizer's state lie on several processes; one process alone has everything either way."""

from __future__ import annotations

from dataclasses import dataclass

from lamp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """Every process has everything (DistributedDataParallel): the fastest where it fits."""


@dataclass(frozen=True, kw_only=True)
class FullySharded:
    """Each process keeps a part of every tensor (FSDP2) and gathers a block's weights when the block is computed."""

    reshard: bool = True
    """Let go of a block's weights after its forward pass, and gather them again for the backward pass; False takes more memory
    and less time."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeed:
    """ZeRO-2 in configurations of earlier versions: they are read as before, but several processes no longer train with it."""

    offload: bool = False


Sharding = Replicated | FullySharded | DeepSpeed


def check_sharding(sharding: Sharding, processes: int) -> None:
    """
    Raises:
        ConfigError: Several processes are to train with what is no longer there.
    """
    if processes > 1 and isinstance(sharding, DeepSpeed):
        raise ConfigError(
            f"sharding DeepSpeed (ZeRO-2) is no longer there, and {processes} processes are to train with it; expected "
            "FullySharded (--sharding full), which shares out gradients, optimizer state and weights, or Replicated "
            "(--sharding replicated)."
        )
