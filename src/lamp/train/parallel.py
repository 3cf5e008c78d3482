"""Parallel strategies: where a stage's trained weights lie (one device, DDP or FSDP2), and an optimizer step on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lamp.errors import ConfigError
from lamp.seeding import Source
from lamp.train.breakdown import AnyBatch, StepLoss
from lamp.train.config import DeepSpeed, FullySharded, LoopConfig, Sharding
from lamp.train.distributed import DistributedContext
from lamp.train.optimizer import AdamW, GradientNorms, Gradients, optimiser_tensors, restore_optimiser
from lamp.train.shards import filled
from lamp.train.stages import Stage


class Objective(nn.Module):
    """A stage's loss as a module's forward pass, which is what DDP and FSDP hook into. It returns plain tensors."""

    def __init__(self, stage: Stage[Any]) -> None:
        super().__init__()
        self.module = stage.module
        self._stage = stage

    def forward(self, batch: AnyBatch, source: Source) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self._stage.loss(batch, source)
        return loss.total, dict(loss.parts)


class SingleDevice:
    """The trained weights of one process and their optimizer; the base of the strategies for several processes."""

    sharded = False
    """Whether this process holds only a part of the weights."""

    def __init__(self, stage: Stage[Any], optimiser: AdamW) -> None:
        self.stage = stage
        self.parameters = stage.parameters()
        self.optimiser = optimiser.build(self.parameters)
        self.gradients = Gradients(self.parameters)

    @property
    def device(self) -> torch.device:
        """Where this process's weights are."""
        return next(iter(self.parameters.values())).device

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch; gradients are exchanged in a step's last one."""
        return nullcontext()

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        return self.stage.loss(batch, source)

    def optimizer_step(self, clip: float) -> GradientNorms:
        """Clips the gradients, updates the weights and drops the gradients; returns the gradients' norms before clipping."""
        norms = self.gradients.clip(clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norms

    def unsharded(self) -> AbstractContextManager[None]:
        """Gathers whole weights for the block, so that the stage's modules work as on one device."""
        return nullcontext()

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as named tensors."""
        return optimiser_tensors(self.optimiser, self.parameters)

    def restore(self, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Puts back trained weights and what `optimiser_tensors` returned."""
        for name, parameter in self.parameters.items():
            filled(parameter.detach(), weights[name])
        restore_optimiser(self.optimiser, self.parameters, optimiser)


class ReplicatedDataParallel(SingleDevice):
    """Every process has all weights: Accelerate wraps the loss in DistributedDataParallel."""

    def __init__(self, stage: Stage[Any], optimiser: AdamW) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        super().__init__(stage, optimiser)
        # Where weights may go without a gradient in a step, DDP has to look which; buffers never change.
        options = DistributedDataParallelKwargs(find_unused_parameters=stage.may_skip, broadcast_buffers=False)
        accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no", kwargs_handlers=[options])
        self.objective: Any = accelerator.prepare_model(Objective(stage))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.objective.no_sync()

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        total, parts = self.objective(batch, source)
        return StepLoss(total=total, parts=parts)


class FullyShardedDataParallel(SingleDevice):
    """Each process keeps a part of every tensor (FSDP2): of each block, and of all that is in none."""

    sharded = True

    def __init__(
        self, stage: Stage[Any], optimiser: AdamW, sharding: FullySharded, distributed: DistributedContext
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().__init__(stage, optimiser)
        mesh = init_device_mesh(self.device.type, (distributed.world_size,))
        for block, methods in stage.blocks.items():
            fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard)
            for method in methods:
                register_fsdp_forward_method(block, method)
        self.objective: Any = fully_shard(Objective(stage), mesh=mesh)
        super().__init__(stage, optimiser)  # the weights are other tensors now

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.objective.set_requires_gradient_sync(last)
        yield

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        total, parts = self.objective(batch, source)
        return StepLoss(total=total, parts=parts)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        self.objective.unshard()
        try:
            yield
        finally:
            self.objective.reshard()


LAUNCHER_CHOICES = {
    "ACCELERATE_USE_FSDP": (FullySharded, "FSDP"),
    "ACCELERATE_USE_DEEPSPEED": (type(None), "DeepSpeed"),
    "ACCELERATE_USE_MEGATRON_LM": (type(None), "Megatron-LM"),
}
"""Environment variables by which `accelerate launch` chooses a strategy."""


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


def build_strategy(stage: Stage[Any], loop: LoopConfig, distributed: DistributedContext) -> SingleDevice:
    """Lays out a stage's weights as `loop.sharding` says.

    Raises:
        ConfigError: The launcher has chosen another strategy, or the one in `loop` is no longer there.
    """
    check_sharding(loop.sharding, distributed.world_size)
    if distributed.world_size == 1:
        return SingleDevice(stage, loop.optimiser)
    for variable, (kind, name) in LAUNCHER_CHOICES.items():
        if os.environ.get(variable, "").lower() == "true" and not isinstance(loop.sharding, kind):
            raise ConfigError(
                f"accelerate is set to use {name}, and this run's sharding is {type(loop.sharding).__name__}; leave it out "
                "there, and choose here: --sharding replicated or --sharding full (FSDP)."
            )
    if isinstance(loop.sharding, FullySharded):
        return FullyShardedDataParallel(stage, loop.optimiser, loop.sharding, distributed)
    return ReplicatedDataParallel(stage, loop.optimiser)
