"""The two stages (Section III-F): what is trained, what is frozen, on which samples, and how held-out episodes are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.data.dataloader import WHOLE, BatchShare, BatchSource, DataLoader, Sampler
from lamp.data.feature_cache.cache import Features
from lamp.data.image_dataset import AnyPolicySamples, ObservedBatch
from lamp.data.mixture import mixture_weights
from lamp.data.motion_dataset import AnyMotionSamples
from lamp.model.lamp import LaMP, required
from lamp.model.layers import checkpoint_activations
from lamp.model.motion_fusion import PathTokenizer
from lamp.seeding import Source, normal, uniform
from lamp.train.breakdown import AXES, TAU_NAMES, Counts, Labels, StepLoss, action_names, clamped
from lamp.train.config import LoopConfig, MotionTraining, PolicyTraining, UnseenEpisodes
from lamp.train.flow_metrics import measure_flow
from lamp.train.metrics import Value
from lamp.train.validation import held_out_loss, measure_actions, spread
from lamp.types import MotionBatch, PolicyBatch, TokenBatch

B = TypeVar("B", MotionBatch, PolicyBatch, ObservedBatch)
ActionBatch = TypeVar("ActionBatch", PolicyBatch, ObservedBatch)
Tokens = TypeVar("Tokens", bound=TokenBatch)


STATISTICS_SAMPLES = 256
"""Training samples over which it is measured how what the Motion Expert hands over is distributed."""


class StageLoader(Generic[B]):
    """A stage's dataloader: this process's share of the batches of a sampler, and the noise of the same rows."""

    def __init__(
        self,
        samples: BatchSource[B],
        loop: LoopConfig,
        share: BatchShare,
        weights: Float[np.ndarray, " n"] | None = None,
        features: Features | None = None,
    ) -> None:
        """
        Args:
            features: What finishes the batches that loading workers begin; None: they are whole.
        """
        self._loop, self._share = loop, share
        self._features = features
        self._sampler = Sampler(len(samples), loop.batch_size, seed=loop.seed, weights=weights, share=share)
        self._loader: DataLoader[B] = DataLoader(samples, self._sampler, workers=loop.workers)

    @property
    def batch_samples(self) -> int:
        """Samples of a step, over all processes."""
        return self._sampler.batch_size

    @property
    def micro_batch_samples(self) -> int:
        """Samples that this process holds in memory at once."""
        return max(1, self._loop.batch_size // (self._share.of * self._loop.accumulate))

    def next_batch(self) -> B:
        batch = next(self._loader)
        if self._features is not None and isinstance(batch, TokenBatch):
            return replace(batch, encoded=self._features.finished(batch.encoded))
        return batch

    def noise(self, what: str, step: int) -> Source:
        """The random numbers of this process's rows of a step's batch."""
        rows = self._share.rows(self.batch_samples)
        return self._loop.noise.at(self._loop.seed, what, step, rows=self.batch_samples).part(rows.start, len(rows))

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)

    def close(self) -> None:
        self._loader.close()


def with_fewer_tokens(batch: Tokens, share: float, source: Source) -> Tokens:
    """Hides a random share of the backbone's tokens (token dropout)."""
    if not share:
        return batch
    return replace(batch, kept=uniform(tuple(batch.encoded.mask.shape), source) >= share)


class Stage(Generic[B]):
    """What is trained: a model, its batches and their loss. What the two stages (and LoRA) have in common."""

    name: str
    model: LaMP
    loader: StageLoader[B]
    labels: Labels = MappingProxyType({})
    """Names of the entries of the loss's parts."""
    stored_draws: int = 0
    """How many z_m of every training sample are computed before the loop."""

    @property
    def module(self) -> nn.Module:
        """Everything that takes part in the loss."""
        return self.model

    @property
    def blocks(self) -> Mapping[nn.Module, tuple[str, ...]]:
        """The modules that FSDP shards each by itself, with their methods that compute with the weights."""
        return self.model.blocks

    @property
    def may_skip(self) -> bool:
        """Whether some step may leave trained weights without a gradient."""
        return False

    @property
    def batch_samples(self) -> int:
        """Samples of a step, over all processes."""
        return self.loader.batch_samples

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name; everything else is frozen."""
        raise NotImplementedError

    def train_mode(self) -> None:
        """Puts the trained parts into training mode and the frozen ones into evaluation mode."""
        raise NotImplementedError

    def next_batch(self, step: int) -> B:
        """Returns this process's share of the next batch."""
        raise NotImplementedError

    def counts(self, batch: B) -> Counts:
        """How many samples each loss of a batch is a mean over."""
        raise NotImplementedError

    def loss(self, batch: B, source: Source) -> StepLoss:
        raise NotImplementedError

    def gauges(self) -> dict[str, float]:
        """Values to log beside the loss, such as the gate."""
        return {}

    def validate(self) -> dict[str, Value]:
        """Measures the held-out episodes, with the same noise every time; empty where none are held out."""
        return {}

    def sampler_state(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def restore_sampler(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)

    def close(self) -> None:
        """Ends the loader's processes."""
        self.loader.close()


class MotionStage(Stage[MotionBatch]):
    """Stage 1: the Motion Expert, all of it, on scene flow (L_motion, Eq. 3)."""

    name = "motion"
    labels = MappingProxyType({"per_axis": AXES, "per_tau": TAU_NAMES, "clamped": AXES})

    def __init__(
        self,
        model: LaMP,
        config: MotionTraining,
        samples: AnyMotionSamples,
        validation: AnyMotionSamples | None,
        share: BatchShare = WHOLE,
    ) -> None:
        self.model, self.config, self.samples, self.validation = model, config, samples, validation
        self.model.requires_grad_(True)
        weights, features = _weights(samples, config.weights), samples.parts[0].features
        self.loader = StageLoader(samples, config.loop, share, weights, features)
        if config.loop.recompute:
            checkpoint_activations(model)

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def train_mode(self) -> None:
        self.model.train()

    def next_batch(self, step: int) -> MotionBatch:
        return with_fewer_tokens(self.loader.next_batch(), self.config.token_dropout, self.loader.noise("tokens", step))

    def counts(self, batch: MotionBatch) -> Counts:
        supervised = required(self.model.motion_expert, "Motion Expert").supervised(batch.motion.mask).flatten(1, 2)
        rows = torch.tensor(float(len(supervised))).double()
        return {
            "loss": supervised.flatten(1).any(1).sum().double(),
            "per_axis": supervised.any(1).sum(0).double(),
            "per_tau": rows,
            "clamped": rows,
        }

    def loss(self, batch: MotionBatch, source: Source) -> StepLoss:
        loss = self.model.motion_loss(batch, source, self.config.draws)
        parts = {"per_axis": loss.per_axis, "per_tau": loss.draws.by_tau(), "clamped": clamped(batch.motion)}
        return StepLoss(total=loss.total, parts=parts)

    def validate(self) -> dict[str, Value]:
        if self.validation is None:
            return {}
        self.model.eval()
        indices = spread(len(self.validation), self.config.validation_samples)
        loop, micro_batch = self.config.loop, self.loader.micro_batch_samples
        measured = held_out_loss(self.loss, self.counts, self.validation, indices, loop, micro_batch)
        flow = measure_flow(self.model, self.validation, indices, loop=replace(loop, batch_size=micro_batch), samples=1)
        return measured | {
            f"ade_px_{name}": errors.ade_px for name, errors in flow.moving.items() if errors.ade_px is not None
        }


class PolicyStage(Stage[ActionBatch]):
    """Stage 2 (Algorithm 1): guidance and Action Expert (L_action, Eq. 5); the Motion Expert is frozen."""

    def __init__(
        self,
        model: LaMP,
        config: PolicyTraining,
        samples: AnyPolicySamples,
        validation: AnyPolicySamples | None,
        share: BatchShare = WHOLE,
    ) -> None:
        self.model, self.config, self.samples, self.validation = model, config, samples, validation
        self.name = "policy" if model.guidance is not None else "policy without motion"
        self.stored_draws = config.stored_draws
        self.trained = config.trained_parts(model)
        model.requires_grad_(False)
        for part in self.trained:
            part.requires_grad_(True)
        first = samples.parts[0]  # the policy's own dataset
        names = action_names(first.dataset.features, first.embodiment, first.scaling.actions.width)
        self.labels: Labels = {"per_dim": names, "per_tau": TAU_NAMES, "action_error_per_dim": names}
        batches: Any = samples  # images where the backbone is trained along, tokens elsewhere
        features = next((part.features for part in samples.cached), None)
        self.loader = StageLoader(batches, config.loop, share, _weights(samples, config.weights), features)
        self.hidden_noise: Tensor | None = None
        if config.loop.recompute:
            checkpoint_activations(model)

    def fit_hidden_statistics(self) -> None:
        """Measures how what the Motion Expert hands over is distributed: a path is standardised by that, and noise is matched
        to it. What a path has been standardised by stays, in a run that goes on and in a fine-tune."""
        share, guidance = self.config.hidden_noise_share, self.model.guidance
        is_path = isinstance(guidance, PathTokenizer)
        if guidance is None or not (share or is_path):
            return
        if is_path and guidance.fitted:
            self.hidden_noise = share * guidance.scale if share else None
            return
        mean, std = self._hidden_statistics()
        if is_path:
            guidance.fit(mean, std)
            std = guidance.scale
        else:
            std = std.square().mean(0).sqrt()  # of a channel, whichever token
        self.hidden_noise = share * std if share else None

    @torch.no_grad()
    def _hidden_statistics(self) -> tuple[Float[Tensor, "m dm"], Float[Tensor, "m dm"]]:
        """Mean and standard deviation of each value that is handed over, over a few hundred training samples."""
        self.model.eval()
        loop, at_once = self.config.loop, 32  # whatever the number of processes, for the same noise
        indices, states = spread(len(self.samples), STATISTICS_SAMPLES), []
        for number, start in enumerate(range(0, len(indices), at_once)):
            part = indices[start : start + at_once]
            seen = cast(ActionBatch, self.samples.batch(part).to(loop.device))
            noise = loop.noise.at(loop.seed, "hand-over", number, rows=len(part)).part(0, len(part))
            with loop.precision.autocast(loop.device):
                batch = self.encoded(seen)
                hidden = batch.motion_hidden
                if hidden is None:
                    start_of = self.model.motion_noise(len(part), noise, loop.device)
                    hidden = self.model.motion_hidden(batch.for_prior, start_of)
            states.append(hidden.float())
        std, mean = torch.std_mean(torch.cat(states), dim=0, correction=0)
        return mean, std

    @property
    def may_skip(self) -> bool:
        """Where the prior is withheld from all samples of a step, guidance has no gradient."""
        unseen = isinstance(self.config.prior_on, UnseenEpisodes)
        return bool(unseen or self.config.prior_dropout or self.config.prior_from)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def train_mode(self) -> None:
        self.model.eval()
        for part in self.trained:
            part.train()

    def next_batch(self, step: int) -> ActionBatch:
        batch = self.loader.next_batch()
        batch = self._with_noisy_state(batch, step) if self.config.state_noise else batch
        batch = self._without_prior(batch, step) if self.config.prior_dropout or self.config.prior_from else batch
        if isinstance(batch, ObservedBatch):  # its tokens are dropped once there are any
            return batch
        return with_fewer_tokens(batch, self.config.token_dropout, self.loader.noise("tokens", step))

    def counts(self, batch: ActionBatch) -> Counts:
        seen = batch.prior_seen
        return {
            "loss": batch.action_mask.any(1).sum().double(),
            "per_tau": torch.tensor(float(len(batch.action_mask))).double(),
            "prior": torch.tensor(float(len(batch.action_mask)) if seen is None else float(seen.sum())).double(),
        }

    def loss(self, batch: ActionBatch, source: Source) -> StepLoss:
        return self.action_loss(self.encoded(batch), source)

    def action_loss(self, batch: PolicyBatch, source: Source) -> StepLoss:
        """L_action (Eq. 5) and its parts."""
        guidance = self.model.guidance
        noise = self.hidden_noise if guidance is not None and guidance.training else None
        loss = self.model.action_loss(batch, source, self.config.noise_draws, hidden_noise=noise)
        flow = {} if loss.flow is None else {"flow": loss.flow}
        return StepLoss(total=loss.total, parts={"per_dim": loss.per_dim, "per_tau": loss.draws.by_tau(), **flow})

    def encoded(self, batch: ActionBatch) -> PolicyBatch:
        """The batch with the backbone's tokens, which are there where the backbone is frozen."""
        assert isinstance(batch, PolicyBatch)
        return batch

    def gauges(self) -> dict[str, float]:
        opening = self.model.gate
        return {} if opening is None else {"gate": opening}

    def validate(self) -> dict[str, Value]:
        if self.validation is None:
            return {}
        self.model.eval()
        indices = spread(len(self.validation), self.config.validation_samples)
        micro_batch, held_out = self.loader.micro_batch_samples, cast(BatchSource[ActionBatch], self.validation)
        measured = held_out_loss(self.loss, self.counts, held_out, indices, self.config.loop, micro_batch)
        if not self.config.action_samples:
            return measured
        indices = spread(len(self.validation), self.config.action_samples)
        return measured | measure_actions(
            self.model, self.encoded, self.validation, indices, loop=self.config.loop, at_once=micro_batch
        )

    def _with_noisy_state(self, batch: ActionBatch, step: int) -> ActionBatch:
        noise = normal(tuple(batch.state.shape), self.loader.noise("state", step))
        return replace(batch, state=batch.state + self.config.state_noise * noise)

    def _without_prior(self, batch: ActionBatch, step: int) -> ActionBatch:
        chance = uniform((len(batch.action_mask),), self.loader.noise("prior", step))
        waiting = step < self.config.prior_from * self.config.loop.steps
        seen = chance >= (1.0 if waiting else self.config.prior_dropout)
        return replace(batch, prior_seen=seen if batch.prior_seen is None else seen & batch.prior_seen)


def _weights(
    samples: AnyMotionSamples | AnyPolicySamples, shares: Sequence[float] | None
) -> Float[np.ndarray, " n"] | None:
    return mixture_weights([len(part) for part in samples.parts], shares)
