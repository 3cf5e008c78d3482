"""The two stages (Section III-F): what is trained, what is frozen, on which samples, and how held-out episodes are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from lamp.data.mixture import MixedSamples, mixture_weights
from lamp.data.motion_samples import MotionSamples
from lamp.data.sampler import Sampler
from lamp.data.samples import PolicySamples
from lamp.model.lamp import LaMP
from lamp.train.action_metrics import measure_actions
from lamp.train.breakdown import AXES, TAU_NAMES, Labels, action_names, by_tau, clamped
from lamp.train.configs import LoopConfig, MotionTraining, PolicyTraining
from lamp.train.flow_metrics import measure_flow
from lamp.train.loop import StepLoss
from lamp.train.metrics import Value
from lamp.train.randomness import generator_at
from lamp.types import Batch


@runtime_checkable
class Samples(Protocol):
    """Samples of some episodes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Int64[np.ndarray, b], *, epoch: int = 0) -> Batch: ...


def spread(total: int, wanted: int) -> Int64[np.ndarray, n]:
    """Returns up to `wanted` indices, evenly spread over `total`: the same ones every time."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(np.int64))


class MotionStage:
    """Stage 1: the Motion Expert, all of it, on scene flow (L_motion, Eq. 3)."""

    name = "motion"
    labels: Labels = MappingProxyType({"per_axis": AXES, "per_tau": TAU_NAMES, "clamped": AXES})

    def __init__(
        self, model: LaMP, config: MotionTraining, samples: MotionSamples, validation: MotionSamples | None
    ) -> None:
        self.model, self.config, self.samples, self.validation = model, config, samples, validation
        self.model.requires_grad_(True)
        self.sampler = Sampler(len(samples), config.loop.batch_size, seed=config.loop.seed)

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def train_mode(self) -> None:
        self.model.train()

    def next_batch(self, step: int) -> Batch:
        pick = next(self.sampler)
        batch = self.samples.batch(pick.indices, epoch=pick.epoch)
        return with_fewer_tokens(batch, self.config.token_dropout, self.config.loop.seed, step)

    def loss(self, batch: Batch, generator: torch.Generator) -> StepLoss:
        assert batch.motion is not None
        loss = self.model.motion_loss(batch, generator, self.config.draws)
        parts = {"per_axis": loss.per_axis, "per_tau": by_tau(loss.draws), "clamped": clamped(batch.motion)}
        return StepLoss(total=loss.total, parts=parts)

    def gauges(self) -> dict[str, float]:
        return {}

    def validate(self) -> dict[str, Value]:
        if self.validation is None:
            return {}
        self.model.eval()
        indices = spread(len(self.validation), self.config.validation_samples)
        measured = held_out_loss(self.loss, self.validation, indices, self.config.loop)
        flow = measure_flow(self.model, self.validation, indices, loop=self.config.loop, samples=1)
        return measured | {
            f"ade_px_{name}": errors.ade_px for name, errors in flow.moving.items() if errors.ade_px is not None
        }

    def sampler_state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def restore_sampler(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class PolicyStage:
    """Stage 2 (Algorithm 1): guidance and Action Expert (L_action, Eq. 5); the Motion Expert is frozen."""

    def __init__(
        self,
        model: LaMP,
        config: PolicyTraining,
        samples: PolicySamples | MixedSamples,
        validation: PolicySamples | MixedSamples | None,
    ) -> None:
        self.model, self.config, self.samples, self.validation = model, config, samples, validation
        self.name = "policy" if model.guidance is not None else "policy without motion"
        self.trained = [part for part in (model.guidance, model.action_expert) if part is not None]
        model.requires_grad_(False)
        for part in self.trained:
            part.requires_grad_(True)
        lengths = [len(part) for part in samples.parts] if isinstance(samples, MixedSamples) else [len(samples)]
        weights = mixture_weights(lengths, config.weights)
        names = _action_names(samples)
        self.labels: Labels = {"per_dim": names, "per_tau": TAU_NAMES, "action_error_per_dim": names}
        self.sampler = Sampler(len(samples), config.loop.batch_size, seed=config.loop.seed, weights=weights)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def train_mode(self) -> None:
        self.model.eval()
        for part in self.trained:
            part.train()

    def next_batch(self, step: int) -> Batch:
        pick = next(self.sampler)
        batch = self.samples.batch(pick.indices, epoch=pick.epoch)
        batch = self._with_noisy_state(batch, step) if self.config.state_noise else batch
        batch = self._without_prior(batch, step) if self.config.prior_dropout or self.config.prior_from else batch
        return with_fewer_tokens(batch, self.config.token_dropout, self.config.loop.seed, step)

    def loss(self, batch: Batch, generator: torch.Generator) -> StepLoss:
        loss = self.model.action_loss(batch, generator, self.config.noise_draws)
        return StepLoss(total=loss.total, parts={"per_dim": loss.per_dim, "per_tau": by_tau(loss.draws)})

    def gauges(self) -> dict[str, float]:
        opening = self.model.gate
        return {} if opening is None else {"gate": opening}

    def validate(self) -> dict[str, Value]:
        if self.validation is None:
            return {}
        self.model.eval()
        indices = spread(len(self.validation), self.config.validation_samples)
        measured = held_out_loss(self.loss, self.validation, indices, self.config.loop)
        if not self.config.action_samples:
            return measured
        indices = spread(len(self.validation), self.config.action_samples)
        return measured | measure_actions(self.model, self.validation, indices, loop=self.config.loop)

    def sampler_state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def restore_sampler(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)

    def _with_noisy_state(self, batch: Batch, step: int) -> Batch:
        assert batch.state is not None
        noise = torch.randn(batch.state.shape, generator=generator_at(self.config.loop.seed, "state", step))
        return replace(batch, state=batch.state + self.config.state_noise * noise)

    def _without_prior(self, batch: Batch, step: int) -> Batch:
        drawn = torch.rand(len(batch.encoded.mask), generator=generator_at(self.config.loop.seed, "prior", step))
        waiting = step < self.config.prior_from * self.config.loop.steps
        seen = drawn >= (1.0 if waiting else self.config.prior_dropout)
        return replace(batch, prior_seen=seen if batch.prior_seen is None else seen & batch.prior_seen)


def _action_names(samples: PolicySamples | MixedSamples) -> tuple[str, ...]:
    """Those of the first dataset, the policy's own."""
    first = samples.parts[0] if isinstance(samples, MixedSamples) else samples
    return action_names(first.features.dataset.features, first.embodiment, first.scaling.actions.width)


def with_fewer_tokens(batch: Batch, share: float, seed: int, step: int) -> Batch:
    """Hides a share of the backbone's tokens, drawn anew at every step."""
    if not share:
        return batch
    mask = batch.encoded.mask
    kept = torch.rand(mask.shape, generator=generator_at(seed, "tokens", step)) >= share
    return replace(batch, encoded=replace(batch.encoded, mask=mask & kept))


@torch.no_grad()
def held_out_loss(
    loss: Callable[[Batch, torch.Generator], StepLoss],
    samples: Samples,
    indices: Int64[np.ndarray, n],
    loop: LoopConfig,
) -> dict[str, Value]:
    """Returns the mean loss over some samples and its parts, with the same noise every time."""
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(batches(indices, loop.batch_size)):
        with loop.precision.autocast(loop.device):
            step = loss(samples.batch(part).to(loop.device), generator_at(loop.seed, "validation", number))
        for name, value in {"loss": step.total, **step.parts}.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach().float().cpu() * len(part)
    return {name: (total / len(indices)).tolist() for name, total in sums.items()}


def batches(indices: Int64[np.ndarray, n], size: int) -> Iterator[Int64[np.ndarray, b]]:
    """Cuts indices into batches, the last one smaller where they do not divide."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
