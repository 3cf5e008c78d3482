"""A real training step of a middling model, and what memory it takes: by torch's allocator, or by the process's own.

As a program it prints, as JSON, how far the process grew at its fullest moment in two steps, above what it held before the model.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lamp.model.action_expert import ActionExpertConfig, Joint, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.layers import checkpoint_activations
from lamp.model.motion_expert import MotionExpertConfig
from lamp.train.config import BFloat16, Float32, LoopConfig, MotionTraining, PolicyTraining, Precision
from lamp.train.optimizer import Ema, Gradients
from lamp.types import Encoded, Motion, MotionBatch, PolicyBatch

WIDTH = 96
MOTION = MotionExpertConfig(token_width=WIDTH, width=128, layers=2, heads=4, grid=(12, 12), horizon=8)
ACTION = ActionExpertConfig(token_width=WIDTH, width=192, layers=4, heads=4, attention=Joint())
GUIDANCE = GuidanceConfig(token_width=WIDTH, motion_width=128, heads=4)


def motion(precision: Precision) -> MotionTraining:
    model = LaMPConfig(token_width=WIDTH, motion=MOTION, guidance=None, action=None)
    return MotionTraining(model=model, loop=LoopConfig(steps=1, precision=precision, threads=1))


def policy(precision: Precision, *, ema: float | None = None, prefix: bool = False) -> PolicyTraining:
    action = replace(ACTION, attention=Prefix()) if prefix else ACTION
    model = LaMPConfig(token_width=WIDTH, motion=MOTION, guidance=GUIDANCE, action=action)
    return PolicyTraining(model=model, loop=LoopConfig(steps=1, precision=precision, threads=1, ema=ema), execute=1)


def random_batch(
    training: MotionTraining | PolicyTraining, model: LaMP, samples: int, tokens: int
) -> MotionBatch | PolicyBatch:
    width = training.model.token_width
    encoded = Encoded(tokens=torch.randn(samples, tokens, width), mask=torch.ones(samples, tokens, dtype=torch.bool))
    if isinstance(training, MotionTraining):
        assert model.motion_shape is not None
        values = torch.rand(samples, *model.motion_shape) * 2 - 1
        return MotionBatch(
            encoded=encoded, motion=Motion(values=values, mask=torch.ones_like(values, dtype=torch.bool))
        )
    assert model.action_shape is not None
    assert training.model.action is not None
    return PolicyBatch(
        encoded=encoded,
        state=torch.randn(samples, training.model.action.state_dim),
        actions=torch.randn(samples, *model.action_shape),
        action_mask=torch.ones(samples, model.action_shape[0], dtype=torch.bool),
    )


def loss_of(training: MotionTraining | PolicyTraining, model: LaMP, batch: MotionBatch | PolicyBatch) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(training, MotionTraining):
        assert isinstance(batch, MotionBatch)
        return model.motion_loss(batch, generator, training.draws).total
    assert isinstance(batch, PolicyBatch)
    return model.action_loss(batch, generator, training.noise_draws).total


def most_above(work: Callable[[], None]) -> int:
    """Bytes at the fullest moment of some work, above those before it, by the record of torch's allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, now)
    return most


class Step:
    """A training step as the loop takes it, and what it holds between two of them."""

    def __init__(self, training: MotionTraining | PolicyTraining, samples: int, tokens: int) -> None:
        torch.manual_seed(0)
        self.training, self.model = training, LaMP(training.model)
        if isinstance(training, PolicyTraining) and self.model.motion_expert is not None:
            self.model.motion_expert.requires_grad_(False)
        self.batch = random_batch(training, self.model, samples, tokens)
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self.gradients, self.optimiser = Gradients(trained), training.loop.optimiser.build(trained)
        self.ema = Ema(trained, training.loop.ema) if training.loop.ema is not None else None
        if training.loop.recompute:
            checkpoint_activations(self.model)
        self.take()

    def take(self) -> None:
        for _ in range(self.training.loop.accumulate):
            with self.training.loop.precision.autocast("cpu"):
                loss = loss_of(self.training, self.model, self.batch)
            loss.backward()
            del loss
        self.gradients.clip(self.training.loop.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(1)

    def held(self) -> int:
        """Bytes between two steps."""
        found = [*self.model.parameters(), *self.model.buffers(), *self.batch.tensors()]
        found += [value for state in self.optimiser.state.values() for value in state.values()]
        found += list(self.ema.average.values()) if self.ema else []
        return sum(value.untyped_storage().nbytes() for value in found)

    def peak(self) -> int:
        """Bytes at the fullest moment of a step, by the record of torch's allocator."""
        return self.held() + most_above(self.take)


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    torch.set_num_threads(1)
    samples, tokens = (int(text) for text in sys.argv[2:4])
    training = policy({"float32": Float32(), "bfloat16": BFloat16()}[sys.argv[1]], ema=0.9)
    # Loads what is loaded once; oneDNN keeps tens of megabytes for bfloat16 products, however large the model.
    Step(training, samples, tokens)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    step = Step(training, samples, tokens)
    Path("/proc/self/clear_refs").write_text("5")  # starts the record of the peak anew
    step.take()
    step.take()
    print(json.dumps({"grown": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
