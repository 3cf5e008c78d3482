"""What is measured: the policy of any recipe with random weights, and observations to go with it.

Speed does not depend on what the weights are, so a full-size model is measured without downloading it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamp.bench.qwen import RandomQwen, random_qwen
from lamp.errors import ConfigError
from lamp.model.fast import FastActor
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.small import SmallBackbone, SmallBackboneConfig
from lamp.recipes import recipe as find_recipe
from lamp.recipes.kinds import AnyRecipe, ModelRecipe
from lamp.types import Encoded, Observations

IMAGE_TOKENS = 64
"""Of a 224x224 view, which Qwen3-VL's own preprocessing enlarges to 256x256: 16x16 patches, merged two by two."""
MARKS = 2
"""Tokens that begin and end an image."""
WORDS = 32
"""Of a prompt whose length the recipe leaves open."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A policy and one batch of inputs."""

    name: str
    model: LaMP
    encoded: Encoded
    state: Tensor
    motion_noise: Tensor | None
    action_noise: Tensor
    vlm: nn.Module | None = None
    """The frozen backbone, where the recipe has one."""
    see: Callable[[], object] | None = None
    """Runs it on the batch's observations."""
    see_fast: Callable[[], Tensor] | None = None
    """The same the fast way, where the backbone has one."""
    joined: Callable[[FastActor], Callable[[], Tensor]] | None = None
    """Gives what runs it and the experts in one, from the pixels on, where that can be."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of `LaMP.act`."""
        noise = {"motion_noise": self.motion_noise, "action_noise": self.action_noise}
        return {"encoded": self.encoded, "state": self.state, **noise}


def policy_config(recipe: AnyRecipe) -> LaMPConfig:
    """The policy's model.

    Raises:
        ConfigError: The recipe trains none.
    """
    config = recipe.models.get("policy")
    if config is None or config.action is None:
        raise ConfigError(f"recipe {recipe.name!r} has no policy to measure; `lamp recipe list` shows those that have.")
    return config


def subject(name: str, *, batch: int, device: torch.device, dtype: torch.dtype, vlm: bool = True) -> Subject:
    """Builds the policy of a recipe.

    Args:
        name: A recipe's.
        batch: Observations at a time.
        device: Where everything is.
        dtype: Of the frozen backbone; the experts stay in float32, as a checkpoint holds them.
        vlm: Build the backbone too, where the recipe has one.
    """
    recipe = find_recipe(name)
    config = policy_config(recipe)
    torch.manual_seed(0)
    with torch.device(device):
        model = stirred(LaMP(config)).eval()
        tokens = _tokens(recipe)
        state_dim = config.action.state_dim if config.action else 0
        motion, action = model.motion_shape, model.action_shape
        assert action is not None
        made = {
            "encoded": Encoded(
                tokens=torch.randn(batch, tokens, config.token_width).to(dtype),
                mask=torch.ones(batch, tokens, dtype=torch.bool),
            ),
            "state": torch.randn(batch, state_dim),
            "motion_noise": motion and torch.randn(batch, *motion),
            "action_noise": torch.randn(batch, *action),
        }
    seeing = _backbone(recipe, batch, device, dtype) if vlm else {}
    qwen: RandomQwen | None = seeing.pop("qwen", None)
    rest = {key: made[key] for key in ("state", "motion_noise", "action_noise")}

    def joined(actor: FastActor) -> Callable[[], Tensor]:
        assert qwen is not None
        step, inputs = qwen.joined(actor), qwen.inputs
        return lambda: step.act(inputs, **rest)

    return Subject(name=name, model=model, **made, **seeing, joined=joined if qwen else None)


def stirred(model: LaMP) -> LaMP:
    """Gives random values to what starts at zero: where zeros are multiplied, no difference would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def _tokens(recipe: AnyRecipe) -> int:
    if isinstance(recipe, ModelRecipe):
        return recipe.tokens
    backbone = recipe.backbone
    if isinstance(backbone, SmallBackboneConfig):
        small = SmallBackbone(backbone)
        return sum(map(small.tokens_of, dict(backbone.cameras))) + backbone.text_tokens
    return _qwen_tokens(backbone)


def _qwen_tokens(config: Qwen3VLBackboneConfig) -> int:
    return len(config.cameras) * (IMAGE_TOKENS + MARKS) + (config.text_tokens or WORDS)


def _backbone(recipe: AnyRecipe, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if isinstance(recipe, ModelRecipe):
        return {}
    config = recipe.backbone
    if isinstance(config, SmallBackboneConfig):
        small = SmallBackbone(config).to(device)
        images = {
            name: torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, device=device)
            for name, side in config.cameras
        }
        observations = Observations(
            images=images, instructions=("pick up the milk and place it in the basket",) * batch
        )
        return {"vlm": small, "see": lambda: small.encode(observations)}
    views, words = len(config.cameras), config.text_tokens or WORDS
    qwen = random_qwen(views=views, text_tokens=words, batch=batch, device=device, dtype=dtype)
    return {"vlm": qwen.vlm, "see": qwen.plain, "see_fast": qwen.fast, "qwen": qwen}
