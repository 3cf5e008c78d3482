"""Where a stage's trained weights lie, and what an optimizer step asks of that: forward, backward, clip, step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.data.image_dataset import ObservedBatch
from lamp.errors import ConfigError
from lamp.seeding import Source
from lamp.train.config import FullySharded, LoopConfig, check_sharding
from lamp.train.distributed import Processes
from lamp.train.optimizer import AdamW, GradientNorms, Gradients, optimiser_tensors, restore_optimiser
from lamp.train.shards import filled
from lamp.types import TokenBatch

AnyBatch = TokenBatch | ObservedBatch
"""A batch with the backbone's tokens, or with the pictures that they are computed of."""
B = TypeVar("B", bound=AnyBatch, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The loss of one batch, and the parts of it that are worth a line in the log."""

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]


@runtime_checkable
class Trained(Protocol[B]):
    """What of a stage a placement has to know."""

    @property
    def module(self) -> nn.Module:
        """Everything that takes part in the loss."""
        ...

    @property
    def blocks(self) -> Mapping[nn.Module, tuple[str, ...]]:
        """The modules that may lie by themselves, each with its methods that compute with its weights."""
        ...

    @property
    def may_skip(self) -> bool:
        """Whether some step may leave trained weights without a gradient."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]: ...

    def loss(self, batch: B, source: Source) -> StepLoss: ...


class Objective(nn.Module):
    """A stage's loss as a module's forward pass, which is what DDP and FSDP hook into. It returns plain tensors."""

    def __init__(self, stage: Trained[Any]) -> None:
        super().__init__()
        self.module = stage.module
        self._stage = stage

    def forward(self, batch: AnyBatch, source: Source) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self._stage.loss(batch, source)
        return loss.total, dict(loss.parts)


@runtime_checkable
class Placement(Protocol):
    """The trained weights of one process, and their optimizer."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    @property
    def modules(self) -> tuple[str, ...]:
        """Whose gradients' norms are told apart."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether this process has only a part of the weights."""
        ...

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one part of a step; gradients are exchanged in the last one."""
        ...

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss: ...

    def backward(self, loss: Float[Tensor, ""]) -> None: ...

    def step(self, clip: float) -> GradientNorms:
        """Clips the gradients, moves the weights and forgets the gradients; returns the gradients' norms before."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Within it, the stage's modules can be asked anything, as if nothing were sharded."""
        ...

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state, as named tensors."""
        ...

    def restore(self, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Puts back trained weights and what `optimiser_tensors` returned."""
        ...


class Alone:
    """Everything is in this process."""

    sharded = False

    def __init__(self, stage: Trained, optimiser: AdamW) -> None:
        self.stage = stage
        self.parameters = stage.parameters()
        self.optimiser: torch.optim.Optimizer = optimiser.build(self.parameters)
        self._gradients = Gradients(self.parameters)

    @property
    def modules(self) -> tuple[str, ...]:
        return self._gradients.modules

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        return self.stage.loss(batch, source)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        loss.backward()

    def step(self, clip: float) -> GradientNorms:
        norms = self._gradients.clip(clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norms

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def optimiser_tensors(self) -> dict[str, Tensor]:
        return optimiser_tensors(self.optimiser, self.parameters)

    def restore(self, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            filled(parameter.detach(), weights[name])
        restore_optimiser(self.optimiser, self.parameters, optimiser)


class Replicas(Alone):
    """Every process has everything; Accelerate wraps the loss in DistributedDataParallel."""

    def __init__(self, stage: Trained, optimiser: AdamW) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        super().__init__(stage, optimiser)
        # Where weights may go without a gradient in a step, DDP has to look which; buffers never change.
        how = DistributedDataParallelKwargs(find_unused_parameters=stage.may_skip, broadcast_buffers=False)
        self.accelerator = Accelerator(cpu=_device(self) == "cpu", mixed_precision="no", kwargs_handlers=[how])
        self.objective = self.accelerator.prepare_model(Objective(stage))

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        with nullcontext() if last else self.accelerator.no_sync(self.objective):
            yield

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        total, parts = self.objective(batch, source)
        return StepLoss(total=total, parts=parts)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        self.accelerator.backward(loss)


class Shards(Alone):
    """Each process keeps a part of every tensor (FSDP2): of each block, and of all that is in none."""

    sharded = True

    def __init__(self, stage: Trained, optimiser: AdamW, sharding: FullySharded, processes: Processes) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().__init__(stage, optimiser)
        mesh = init_device_mesh(_device(self), (processes.count,))
        for block, methods in stage.blocks.items():
            fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard)
            for method in methods:
                register_fsdp_forward_method(block, method)
        self.objective: Any = fully_shard(Objective(stage), mesh=mesh)
        # The weights are other tensors now.
        super().__init__(stage, optimiser)

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        self.objective.set_requires_gradient_sync(last)
        yield

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        total, parts = self.objective(batch, source)
        return StepLoss(total=total, parts=parts)

    @contextmanager
    def whole(self) -> Iterator[None]:
        self.objective.unshard()
        try:
            yield
        finally:
            self.objective.reshard()


def _device(placement: Alone) -> str:
    return next(iter(placement.parameters.values())).device.type


OTHERS = {
    "ACCELERATE_USE_FSDP": (FullySharded, "FSDP"),
    "ACCELERATE_USE_DEEPSPEED": (type(None), "DeepSpeed"),
    "ACCELERATE_USE_MEGATRON_LM": (type(None), "Megatron-LM"),
}
"""What `accelerate launch` may have been told to do with the weights, by its environment variables."""


def place(stage: Trained, loop: LoopConfig, processes: Processes) -> Placement:
    """Lays out a stage's weights.

    Args:
        stage: Whose.
        loop: How it is trained.
        processes: Who trains together.

    Raises:
        ConfigError: The launcher has been told to do it in another way, or the way is no longer there.
    """
    check_sharding(loop.sharding, processes.count)
    if processes.count == 1:
        return Alone(stage, loop.optimiser)
    for variable, (kind, name) in OTHERS.items():
        if os.environ.get(variable, "").lower() == "true" and not isinstance(loop.sharding, kind):
            raise ConfigError(
                f"accelerate was told to use {name}, and this run's sharding is {type(loop.sharding).__name__}; leave it out "
                "there, and choose here: --sharding replicated or --sharding full (FSDP)."
            )
    if isinstance(loop.sharding, FullySharded):
        return Shards(stage, loop.optimiser, loop.sharding, processes)
    return Replicas(stage, loop.optimiser)
