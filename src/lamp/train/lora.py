"""Stage 2 with a vision-language model that is trained along (LoRA): its tokens change, so each step computes them anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from lamp.data.dataloader import WHOLE, BatchShare
from lamp.data.image_dataset import AnyPolicySamples, ObservedBatch
from lamp.errors import ConfigError
from lamp.model.lamp import LaMP, required
from lamp.model.qwen3_vl import Qwen3VLBackbone
from lamp.model.qwen_lora import adapters, recompute_layers
from lamp.seeding import Source, uniform
from lamp.train.breakdown import StepLoss
from lamp.train.checkpoint import ADAPTER_PREFIX
from lamp.train.config import PolicyTraining, UnseenEpisodes
from lamp.train.metrics import Value
from lamp.train.stages import PolicyStage
from lamp.types import PolicyBatch


class AdaptedStage(PolicyStage[ObservedBatch]):
    """Guidance, Action Expert and the adapters of the backbone; everything else is frozen, the Motion Expert too."""

    def __init__(
        self,
        model: LaMP,
        backbone: Qwen3VLBackbone,
        config: PolicyTraining,
        samples: AnyPolicySamples,
        validation: AnyPolicySamples | None,
        share: BatchShare = WHOLE,
    ) -> None:
        super().__init__(model, config, samples, validation, share)
        self.backbone = backbone
        self._both = nn.ModuleDict({"lamp": model, "vlm": backbone.vlm})
        if config.loop.recompute:
            recompute_layers(backbone.vlm)

    @property
    def module(self) -> nn.Module:
        return self._both

    @property
    def blocks(self) -> Mapping[nn.Module, tuple[str, ...]]:
        vlm = self.backbone.vlm
        return {**super().blocks, **dict.fromkeys([*vlm.visual.blocks, *vlm.language_model.layers], ())}

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            **super().parameters(),
            **{ADAPTER_PREFIX + name: value for name, value in adapters(self.backbone.vlm).items()},
        }

    def train_mode(self) -> None:
        super().train_mode()
        self.backbone.train()

    def loss(self, batch: ObservedBatch, source: Source) -> StepLoss:
        seen = self.encoded(batch)
        if self.config.token_dropout and self.backbone.training:
            # As many numbers as there can be tokens: how many there are depends on the part of the batch.
            mask = seen.encoded.mask
            numbers = uniform((len(mask), self.config.action.positions), source)
            seen = replace(seen, kept=numbers[:, : mask.shape[1]].to(mask.device) >= self.config.token_dropout)
        return self.action_loss(seen, source)

    def encoded(self, batch: ObservedBatch) -> PolicyBatch:
        observations = required(batch.observations, "the observations of a batch")
        reads = self.model.motion_expert is not None and batch.guided is not False
        return PolicyBatch(
            encoded=self.backbone.encode(observations),
            prior=self.backbone.encode_for_prior(observations) if reads else None,
            state=batch.state,
            actions=batch.actions,
            action_mask=batch.action_mask,
            prior_seen=batch.prior_seen,
            guided=batch.guided,
        )

    def validate(self) -> dict[str, Value]:
        self.backbone.eval()
        return super().validate()


def check_adaptable(config: PolicyTraining) -> None:
    """
    Raises:
        ConfigError: A setting is given that needs tokens that do not change.
    """
    excluded = {
        "cached_hidden_draws": bool(config.cached_hidden_draws),
        "prior": config.prior == "oracle",
        "prior_on": isinstance(config.prior_on, UnseenEpisodes),
        "also": bool(config.also),
    }
    for name, is_set in excluded.items():
        if is_set:
            raise ConfigError(
                f"{name} is set, and the backbone has adapters (lora); expected one of the two: leave {name} as it is by "
                "default, or train without adapters."
            )
