"""The memory of a training step, found by running it on tensors without values and noting every storage.

So the estimate knows of what is saved for the backward pass, of autocast's copies, of what an operator needs for a moment, and
of whatever is added to the models later; and a full-size model takes seconds on any machine."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lamp.flow_matching import Uniform
from lamp.model.lamp import LaMP
from lamp.model.layers import checkpoint_activations
from lamp.train.config import BFloat16, FullySharded, LoopConfig, MotionTraining, PolicyTraining
from lamp.train.optimizer import Ema
from lamp.types import Encoded, Motion, MotionBatch, PolicyBatch, TokenBatch

GIB = 2**30
GPU_RESERVE = GIB
"""For what the estimate does not know of: a GPU's context, libraries' work space, gaps between what the allocator hands out."""
COMPUTING = "forward and backward"
PROBE = 32
"""Samples from which the memory of larger batches is extrapolated."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What of a batch memory depends on."""

    samples: int
    tokens: int
    """Of the backbone, for each sample."""
    hidden: bool = False
    """Whether z_m comes with the batch."""
    whole: bool | None = None
    """Whether no token is padding, where that is known."""
    dtype: torch.dtype = torch.float32
    """Of the tokens."""

    @classmethod
    def of(cls, batch: MotionBatch | PolicyBatch) -> BatchShape:
        """The shape of a batch that is there."""
        samples, tokens, _ = batch.encoded.tokens.shape
        hidden = batch.motion_hidden is not None
        return cls(
            samples=samples, tokens=tokens, hidden=hidden, whole=batch.encoded.whole, dtype=batch.encoded.tokens.dtype
        )


@dataclass(frozen=True, kw_only=True)
class StepPeak:
    """What is held for a while only, when most of it is. [bytes]"""

    name: str
    gradients: int
    activations: int
    """What is kept for the backward pass, autocast's copies of weights, and what operators need for a moment."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.gradients + self.activations


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a training step holds on one device. [bytes]"""

    weights: int
    """That are trained."""
    frozen: int
    """Weights that are not, and tables."""
    optimiser: int
    average: int
    """Of the weights, where the run averages."""
    exchange: int
    """For several processes: copies of the gradients to exchange, or, where weights are shared out, what is gathered of them."""
    batch: int
    moments: tuple[StepPeak, ...]
    """The fullest moment of each part of a step."""
    backbone: int = 0
    """Weights of a frozen backbone that encodes in the step; what it needs while it does is gone before the rest begins."""

    @property
    def fullest(self) -> StepPeak:
        """The fullest moment of all."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def held(self) -> dict[str, int]:
        """What is held all the time, by part."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    @property
    def parts(self) -> dict[str, int]:
        """What is held at the fullest moment, by part."""
        return {**self.held, "gradients": self.fullest.gradients, "activations": self.fullest.activations}

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def step_memory(
    training: MotionTraining | PolicyTraining, shape: BatchShape, device: str | None = None, *, processes: int = 1
) -> Memory:
    """Estimates the memory of a training step on one device.

    Args:
        shape: Of what a device computes at once.
        device: Where; the training's by default. A GPU is reckoned without its context and what its allocator wastes; see
            `GPU_RESERVE`.
        processes: How many train together.
    """
    kind = torch.device(device or training.loop.device).type
    place = torch.device("cpu" if kind == "cpu" else "meta")
    with FakeTensorMode() if kind == "cpu" else nullcontext():  # a CPU's own operators, or those of any other device
        model = _model(training, place)
        batch, loss = _batch(training, model, shape, place)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        held = [*model.parameters(), *model.buffers()]
        tracker = AllocationTracker([*held, *batch.tensors()], place)
        with tracker, torch.autograd.set_multithreading_enabled(False):
            # In the second part all gradients are there from the start.
            for _ in range(min(training.loop.accumulate, 2)):
                with _precision(training.loop, kind):
                    total = loss(torch.Generator().manual_seed(0))
                total.backward()
                del total
        made = tracker.numbers_of(value.grad for value in trained.values() if value.grad is not None)
        gradients, others = tracker.fullest(made)
    weights = _bytes(list(trained.values()))
    states, update = _update(training.loop, trained)
    memory = Memory(
        weights=weights,
        frozen=_bytes(held) - weights,
        optimiser=states,
        average=weights if training.loop.ema is not None else 0,
        exchange=weights if processes > 1 else 0,
        batch=_bytes(batch.tensors()),
        moments=(StepPeak(name=COMPUTING, gradients=gradients, activations=others), update),
    )
    sharding = training.loop.sharding
    if processes == 1 or not isinstance(sharding, FullySharded):
        return memory
    gathered = _gathered(model, sharding)
    return _shared_out(memory, gathered, processes, exchanged_at_once=training.loop.accumulate == 1)


def _gathered(model: LaMP, sharding: FullySharded) -> int:
    """Bytes of whole weights and gradients that a process has beside its parts, where weights are gathered block by block."""
    blocks = [list(block.parameters()) for block in model.blocks]
    inside = {id(value) for block in blocks for value in block}
    rest = _bytes([value for value in model.parameters() if id(value) not in inside])
    sizes = sorted((_bytes(block) for block in blocks), reverse=True)
    trained = sorted((_bytes([value for value in block if value.requires_grad]) for block in blocks), reverse=True)
    # The next block is gathered while one is computed, and its gradients are still there while the next ones are made.
    return rest + sum(sizes[:2] if sharding.reshard else sizes) + sum(trained[:2])


def _shared_out(whole: Memory, gathered: int, processes: int, *, exchanged_at_once: bool) -> Memory:
    """What each of several processes holds that keep a part of every tensor."""

    def part(size: int) -> int:
        return math.ceil(size / processes)

    computing, update = whole.moments
    # Gradients stay whole until they are exchanged, which is after the last part of a step.
    gradients = part(computing.gradients) if exchanged_at_once else computing.gradients
    return Memory(
        weights=part(whole.weights),
        frozen=part(whole.frozen),
        optimiser=part(whole.optimiser),
        average=part(whole.average),
        exchange=gathered,
        batch=whole.batch,
        moments=(
            replace(computing, gradients=gradients),
            replace(update, gradients=part(update.gradients), activations=part(update.activations)),
        ),
    )


def largest_batch(
    training: MotionTraining | PolicyTraining,
    shape: BatchShape,
    limit: int,
    device: str | None = None,
    *,
    processes: int = 1,
) -> int:
    """How many samples of this shape a device can compute at once in so many bytes; 0: not one."""

    def needed(samples: int) -> int:
        return step_memory(training, replace(shape, samples=samples), device, processes=processes).total

    one, many = needed(1), needed(PROBE)
    if one > limit:
        return 0
    # From where the activations are more than what an update needs, each sample takes as much as the next.
    each = max(needed(2 * PROBE) - many, 1) / PROBE
    largest = max(1, math.floor(PROBE + (limit - many) / each))
    while largest > 1 and (over := needed(largest) - limit) > 0:
        largest = max(1, largest - math.ceil(over / each))
    return largest


def _update(loop: LoopConfig, trained: Mapping[str, Tensor]) -> tuple[int, StepPeak]:
    """Returns the bytes of the optimizer's state, and the fullest moment of the update; clipping needs nothing."""
    parameters = {name: nn.Parameter(torch.empty_like(value, device="meta")) for name, value in trained.items()}
    optimiser = loop.optimiser.build(parameters)
    average = Ema(parameters, loop.ema) if loop.ema is not None else None
    place = torch.device("meta")
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimiser.step()  # makes its state
    states = [value for state in optimiser.state.values() for value in state.values()]
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    tracker = AllocationTracker(
        [*parameters.values(), *gradients, *states, *(average.average.values() if average else ())], place
    )
    with tracker:
        optimiser.step()
        if average is not None:
            average.update(1)
    moment = StepPeak(name="optimizer", gradients=_bytes(gradients), activations=tracker.fullest()[1])
    return _bytes(states), moment


def _model(training: MotionTraining | PolicyTraining, place: torch.device) -> LaMP:
    # Which flow times are drawn changes no shape, and Beta draws them on the host.
    with place:
        model = LaMP(replace(training.model, motion_tau=Uniform(), action_tau=Uniform()))
    model.requires_grad_(False).eval()
    for part in training.trained_parts(model):
        part.requires_grad_(True).train()
    if training.loop.recompute:
        # A CPU's autocast comes back by itself where blocks are computed again, what stands for a GPU's does not.
        checkpoint_activations(model, None if place.type == "cpu" else lambda: _precision(training.loop, place.type))
    return model


def _batch(
    training: MotionTraining | PolicyTraining, model: LaMP, shape: BatchShape, place: torch.device
) -> tuple[TokenBatch, Callable[[torch.Generator], Tensor]]:
    """A batch without values, and its loss."""
    b, config = shape.samples, training.model

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(b, *size, dtype=dtype, device=place)

    encoded = Encoded(
        tokens=empty(shape.tokens, config.token_width, dtype=shape.dtype),
        mask=empty(shape.tokens, dtype=torch.bool),
        whole=shape.whole,
    )
    kept = empty(shape.tokens, dtype=torch.bool) if training.token_dropout else None
    if isinstance(training, MotionTraining):
        shape_of_flow = training.motion.shape
        motion = Motion(values=empty(*shape_of_flow), mask=empty(*shape_of_flow, dtype=torch.bool))
        flows = MotionBatch(encoded=encoded, kept=kept, motion=motion)
        return flows, lambda generator: model.motion_loss(flows, generator, training.draws).total
    hidden_shape, flow = config.hidden_shape, None
    if (head := config.flow_head) is not None:
        shape_of_flow = (math.prod(head.grid), head.horizon, 3)
        flow = Motion(values=empty(*shape_of_flow), mask=empty(*shape_of_flow, dtype=torch.bool))
    actions = PolicyBatch(
        encoded=encoded,
        kept=kept,
        state=empty(training.action.state_dim),
        actions=empty(*training.action.shape),
        action_mask=empty(training.action.chunk, dtype=torch.bool),
        motion=flow,
        motion_hidden=empty(*hidden_shape) if hidden_shape and shape.hidden else None,
    )
    noise = torch.empty(hidden_shape[1], device=place) if hidden_shape and training.hidden_noise_share else None
    return (
        actions,
        lambda generator: model.action_loss(actions, generator, training.noise_draws, hidden_noise=noise).total,
    )


def _precision(loop: LoopConfig, kind: str) -> AbstractContextManager[object]:
    return (
        loop.precision.autocast("cpu") if kind == "cpu" else SimulatedGpu(autocast=isinstance(loop.precision, BFloat16))
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class AllocationTracker(TorchDispatchMode):
    """Notes every storage that operators make, and its end. What existed before and was not made known counts as made."""

    def __init__(self, known: Iterable[Tensor], device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._alive: dict[int, weakref.ref[Any] | None] = {tensor.untyped_storage()._cdata: None for tensor in known}
        self._number: dict[int, int] = {}
        self.events: list[tuple[int, int]] = []
        """(number of a storage, bytes gained or lost), in order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device == self._device:
                self._note(leaf)
        return out

    def numbers_of(self, tensors: Iterable[Tensor]) -> set[int]:
        """The numbers of the storages of some tensors, of those on record."""
        return {self._number[key] for x in tensors if (key := x.untyped_storage()._cdata) in self._number}

    def fullest(self, apart: Collection[int] = ()) -> tuple[int, int]:
        """Returns what was held at the fullest moment: in the storages that are looked at apart, and in all others. [bytes]"""
        held, chosen, best = 0, 0, (0, 0)
        for number, change in self.events:
            held += change
            chosen += change if number in apart else 0
            best = max(best, (held, chosen))
        return best[1], best[0] - best[1]

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        number = len(self.events)
        self.events.append((number, size))
        self._number[key] = number
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, number, size))

    def _forget(self, key: int, number: int, size: int) -> None:
        self.events.append((number, -size))
        self._alive.pop(key, None)
        self._number.pop(key, None)


class SimulatedGpu(TorchFunctionMode):
    """Makes tensors on the meta device go through what a GPU would do: fused attention, and autocast to bfloat16 if asked for.

    torch's own autocast, and its choice of an attention kernel, ask for a device that is there.
    """

    LOWER = (functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm)
    """Of the operators that autocast runs in bfloat16, those that the models have."""

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast
        self._cast: dict[int, Tensor] = {}
        """Weights in bfloat16, kept until the end as autocast keeps them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self._autocast and func in self.LOWER:
            return func(*_each(self._lower, args), **{name: self._lower(value) for name, value in kwargs.items()})
        if self._autocast and func in (functional.layer_norm, functional.softmax, torch.softmax):
            return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """A kernel that keeps its output and one number a row, as those of a GPU do; dropped weights are drawn again."""
        if self._autocast:
            query, key, value = _each(self._lower, (query, key, value))
        bias = attn_mask
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = query.new_zeros(attn_mask.shape)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, 0.0, False, attn_mask=bias)[0]

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.bfloat16()
        if id(value) not in self._cast:
            self._cast[id(value)] = value.bfloat16()
        return self._cast[id(value)]


def _each(change: Callable[[Any], Any], values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(change(value) for value in values)
