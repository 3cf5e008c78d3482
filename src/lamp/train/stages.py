"""The two stages (Section III-F): what is trained, what is frozen, on which samples, and how held-out episodes are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lamp.data.loading import Loader
from lamp.data.mixture import MixedSamples, mixture_weights
from lamp.data.motion_samples import MotionSamples
from lamp.data.sampler import WHOLE, Sampler, Share
from lamp.data.samples import PolicySamples
from lamp.draws import Source, WholeBatch, normal, uniform
from lamp.model.lamp import LaMP
from lamp.model.recompute import recompute
from lamp.train.configs import LoopConfig, MotionTraining, PolicyTraining, UnseenEpisodes
from lamp.train.flow_metrics import measure_flow
from lamp.train.counts import Counts, added, weighted
from lamp.train.metrics import Value
from lamp.train.placement import StepLoss
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


class _Drawn:
    """Where a stage's samples come from: this process's share of the batches of a sampler, and of their noise."""

    def __init__(
        self, samples: Samples, loop: LoopConfig, share: Share, weights: Float[np.ndarray, n] | None = None
    ) -> None:
        self._loop, self._share = loop, share
        self._sampler = Sampler(len(samples), loop.batch_size, seed=loop.seed, weights=weights, share=share)
        self._loader: Loader[Batch] = Loader(samples, self._sampler, workers=loop.workers)

    @property
    def batch_samples(self) -> int:
        """Samples of a step, over all processes."""
        return self._sampler.batch_size

    @property
    def at_once(self) -> int:
        """Samples that this process has in its memory together."""
        return max(1, self._loop.batch_size // (self._share.of * self._loop.accumulate))

    def next_batch(self) -> Batch:
        return next(self._loader)

    def noise(self, what: str, step: int) -> Source:
        """The draws of these rows of a step's batch."""
        rows = self._share.rows(self.batch_samples)
        return self._loop.noise.at(self._loop.seed, what, step, rows=self.batch_samples).part(rows.start, len(rows))

    def state(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)

    def close(self) -> None:
        self._loader.close()


class MotionStage:
    """Stage 1: the Motion Expert, all of it, on scene flow (L_motion, Eq. 3)."""

    name = "motion"
    may_skip = False

    def __init__(
        self,
        model: LaMP,
        config: MotionTraining,
        samples: MotionSamples,
        validation: MotionSamples | None,
        share: Share = WHOLE,
    ) -> None:
        self.model, self.config, self.samples, self.validation = model, config, samples, validation
        self.model.requires_grad_(True)
        self.drawn = _Drawn(samples, config.loop, share)
        if config.loop.recompute:
            recompute(model)

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def blocks(self) -> Mapping[nn.Module, tuple[str, ...]]:
        return self.model.blocks

    @property
    def batch_samples(self) -> int:
        return self.drawn.batch_samples

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def train_mode(self) -> None:
        self.model.train()

    def next_batch(self, step: int) -> Batch:
        batch = self.drawn.next_batch()
        return with_fewer_tokens(batch, self.config.token_dropout, self.drawn.noise("tokens", step))

    def counts(self, batch: Batch) -> Counts:
        assert batch.motion is not None and self.model.motion_expert is not None
        supervised = self.model.motion_expert.supervised(batch.motion.mask).flatten(1, 2)
        return {"loss": supervised.flatten(1).any(1).sum().double(), "per_axis": supervised.any(1).sum(0).double()}

    def loss(self, batch: Batch, source: Source) -> StepLoss:
        loss = self.model.motion_loss(batch, source, self.config.draws)
        return StepLoss(total=loss.total, parts={"per_axis": loss.per_axis})

    def gauges(self) -> dict[str, float]:
        return {}

    def validate(self) -> dict[str, Value]:
        if self.validation is None:
            return {}
        self.model.eval()
        indices = spread(len(self.validation), self.config.validation_samples)
        loop, at_once = self.config.loop, self.drawn.at_once
        measured = held_out_loss(self, self.validation, indices, loop, at_once)
        flow = measure_flow(self.model, self.validation, indices, loop=replace(loop, batch_size=at_once), samples=1)
        return measured | {
            f"ade_px_{name}": errors.ade_px for name, errors in flow.moving.items() if errors.ade_px is not None
        }

    def sampler_state(self) -> dict[str, Any]:
        return self.drawn.state()

    def restore_sampler(self, state: dict[str, Any]) -> None:
        self.drawn.restore(state)

    def close(self) -> None:
        self.drawn.close()


class PolicyStage:
    """Stage 2 (Algorithm 1): guidance and Action Expert (L_action, Eq. 5); the Motion Expert is frozen."""

    def __init__(
        self,
        model: LaMP,
        config: PolicyTraining,
        samples: PolicySamples | MixedSamples,
        validation: PolicySamples | MixedSamples | None,
        share: Share = WHOLE,
    ) -> None:
        self.model, self.config, self.samples, self.validation = model, config, samples, validation
        self.name = "policy" if model.guidance is not None else "policy without motion"
        self.trained = [part for part in (model.guidance, model.action_expert) if part is not None]
        model.requires_grad_(False)
        for part in self.trained:
            part.requires_grad_(True)
        lengths = [len(part) for part in samples.parts] if isinstance(samples, MixedSamples) else [len(samples)]
        self.drawn = _Drawn(samples, config.loop, share, mixture_weights(lengths, config.weights))
        if config.loop.recompute:
            recompute(model)

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def blocks(self) -> Mapping[nn.Module, tuple[str, ...]]:
        return self.model.blocks

    @property
    def may_skip(self) -> bool:
        """Where the prior is withheld from all samples of a step, guidance has no gradient."""
        unseen = isinstance(self.config.prior_on, UnseenEpisodes)
        return bool(unseen or self.config.prior_dropout or self.config.prior_from)

    @property
    def batch_samples(self) -> int:
        return self.drawn.batch_samples

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def train_mode(self) -> None:
        self.model.eval()
        for part in self.trained:
            part.train()

    def next_batch(self, step: int) -> Batch:
        batch = self.drawn.next_batch()
        batch = self._with_noisy_state(batch, step) if self.config.state_noise else batch
        batch = self._without_prior(batch, step) if self.config.prior_dropout or self.config.prior_from else batch
        return with_fewer_tokens(batch, self.config.token_dropout, self.drawn.noise("tokens", step))

    def counts(self, batch: Batch) -> Counts:
        assert batch.action_mask is not None
        seen = batch.prior_seen
        return {
            "loss": batch.action_mask.any(1).sum().double(),
            "prior": torch.tensor(float(len(batch.action_mask)) if seen is None else float(seen.sum())).double(),
        }

    def loss(self, batch: Batch, source: Source) -> StepLoss:
        loss = self.model.action_loss(batch, source, self.config.noise_draws)
        return StepLoss(total=loss.total, parts={"per_dim": loss.per_dim})

    def gauges(self) -> dict[str, float]:
        opening = self.model.gate
        return {} if opening is None else {"gate": opening}

    def validate(self) -> dict[str, Value]:
        if self.validation is None:
            return {}
        self.model.eval()
        indices = spread(len(self.validation), self.config.validation_samples)
        return held_out_loss(self, self.validation, indices, self.config.loop, self.drawn.at_once)

    def sampler_state(self) -> dict[str, Any]:
        return self.drawn.state()

    def restore_sampler(self, state: dict[str, Any]) -> None:
        self.drawn.restore(state)

    def close(self) -> None:
        self.drawn.close()

    def _with_noisy_state(self, batch: Batch, step: int) -> Batch:
        assert batch.state is not None
        noise = normal(tuple(batch.state.shape), self.drawn.noise("state", step))
        return replace(batch, state=batch.state + self.config.state_noise * noise)

    def _without_prior(self, batch: Batch, step: int) -> Batch:
        drawn = uniform((len(batch.encoded.mask),), self.drawn.noise("prior", step))
        waiting = step < self.config.prior_from * self.config.loop.steps
        seen = drawn >= (1.0 if waiting else self.config.prior_dropout)
        return replace(batch, prior_seen=seen if batch.prior_seen is None else seen & batch.prior_seen)


def with_fewer_tokens(batch: Batch, share: float, source: Source) -> Batch:
    """Hides a share of the backbone's tokens, drawn anew at every step."""
    if not share:
        return batch
    mask = batch.encoded.mask
    kept = uniform(tuple(mask.shape), source) >= share
    return replace(batch, encoded=replace(batch.encoded, mask=mask & kept))


@runtime_checkable
class Measured(Protocol):
    """What of a stage a measurement needs."""

    def loss(self, batch: Batch, source: Source) -> StepLoss: ...

    def counts(self, batch: Batch) -> Counts: ...


@torch.no_grad()
def held_out_loss(
    stage: Measured, samples: Samples, indices: Int64[np.ndarray, n], loop: LoopConfig, at_once: int | None = None
) -> dict[str, Value]:
    """Returns the mean loss over some samples and its parts, with the same noise every time.

    Args:
        stage: Whose loss.
        samples: Of held-out episodes.
        indices: Which of them.
        loop: Batch size, precision, device and seed.
        at_once: Samples that go through the model together; a batch by default. The noise does not depend on it.
    """
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(batches(indices, loop.batch_size)):
        noise = WholeBatch(generator=generator_at(loop.seed, "validation", number), rows=len(part))
        size = min(at_once or len(part), len(part))
        pieces = [(first, samples.batch(part[first : first + size])) for first in range(0, len(part), size)]
        counts = [stage.counts(piece) for _, piece in pieces]
        totals = added(counts)
        for (first, piece), count in zip(pieces, counts, strict=True):
            with loop.precision.autocast(loop.device):
                step = stage.loss(piece.to(loop.device), noise.part(first, len(piece.encoded.mask)))
            for name, value in {"loss": step.total, **step.parts}.items():
                mean = weighted(value.detach().float().cpu(), name, count, totals, parts=len(pieces))
                sums[name] = sums.get(name, torch.zeros(())) + mean * len(part)
    return {name: (total / len(indices)).tolist() for name, total in sums.items()}


def batches(indices: Int64[np.ndarray, n], size: int) -> Iterator[Int64[np.ndarray, b]]:
    """Cuts indices into batches, the last one smaller where they do not divide."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
