"""How weights, gradients and the optimizer's state lie on several processes; one process alone has everything either way."""

from __future__ import annotations

from dataclasses import dataclass


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
    """Gradients and the optimizer's state are shared out, weights are not (ZeRO-2). On GPUs, with package deepspeed."""

    offload: bool = False
    """Keep the optimizer's state in the host's memory."""


Sharding = Replicated | FullySharded | DeepSpeed
