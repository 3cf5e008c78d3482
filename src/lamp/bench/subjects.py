"""What is measured: the policy of any recipe with random weights, Qwen3-VL included, and observations to go with it.

Speed does not depend on what the weights are, so a full-size model is measured without downloading it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamp.data.padding import RightPadding
from lamp.errors import ConfigError
from lamp.model.backbone import frozen
from lamp.model.fast import FastActor
from lamp.model.fast_step import FastStep
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig, QwenInputs, run_plain
from lamp.model.qwen_fast import FastQwen
from lamp.model.qwen_files import missing
from lamp.model.small import SmallBackbone, SmallBackboneConfig
from lamp.recipes import recipe as find_recipe
from lamp.recipes.kinds import AnyRecipe, ModelRecipe
from lamp.types import Encoded, Observations


@dataclass(frozen=True, kw_only=True)
class QwenSizes:
    """Sizes of a Qwen3-VL; the defaults are Qwen3-VL-4B's (its config.json on the hub)."""

    width: int = 2560
    layers: int = 36
    heads: int = 32
    key_value_heads: int = 8
    head_width: int = 128
    mlp: int = 9728
    words: int = 151_936
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_mlp: int = 4096
    deep: tuple[int, ...] = (5, 11, 17)
    """Vision layers whose features enter the first language layers."""

    def to_transformers(self) -> Any:
        """Returns the configuration that transformers builds it from."""
        from transformers import Qwen3VLConfig

        quarter = self.head_width // 8
        sections = [self.head_width // 2 - 2 * (quarter + quarter // 4), quarter + quarter // 4, quarter + quarter // 4]
        return Qwen3VLConfig(
            text_config={
                "hidden_size": self.width,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_width,
                "vocab_size": self.words,
                "use_cache": False,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": sections,
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": self.vision_layers,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_mlp,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.width,
                "deepstack_visual_indexes": list(self.deep),
            },
        )


@dataclass(frozen=True, kw_only=True)
class RandomQwen:
    """A model with random weights, and two ways of running it on the same views and words."""

    vlm: nn.Module
    plain: Callable[[], Tensor]
    """transformers' own forward."""
    fast: Callable[[], Tensor]
    """What an accelerated `Qwen3VLBackbone` runs."""
    inputs: QwenInputs
    """The views and words."""
    joined: Callable[[FastActor], FastStep]
    """The model and a policy's experts in one, from the pixels on."""


def random_qwen(
    *,
    views: int,
    text_tokens: int,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    sizes: QwenSizes | None = None,
    side: int = 256,
) -> RandomQwen:
    """Builds the model, to run on random views and words as `Qwen3VLBackbone.forward` does.

    Args:
        views: Images of one observation.
        text_tokens: Words beside them.
        batch: Observations.
        device: Where it is.
        dtype: Of its weights.
        sizes: Qwen3-VL-4B's if None.
        side: Of an image, after the model's own enlargement [px].

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import Qwen3VLModel
    except ImportError as error:
        raise missing(error) from error
    config = (sizes or QwenSizes()).to_transformers()
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            vlm: Any = Qwen3VLModel(config)
    finally:
        torch.set_default_dtype(before)
    vlm.language_model.norm = nn.Identity()
    frozen(vlm)

    vision = config.vision_config
    cells = side // vision.patch_size
    one_image = [config.vision_start_token_id, *[config.image_token_id] * (cells // 2) ** 2, config.vision_end_token_id]
    words = torch.randint(1000, (text_tokens,)).tolist()
    ids = torch.tensor([one_image * views + words])
    grid = torch.tensor([[1, cells, cells]] * views)
    positions, _ = vlm.get_rope_index(ids, (ids == config.image_token_id).int(), image_grid_thw=grid)
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    length = ids.shape[1]
    inputs = QwenInputs(
        ids=ids.repeat(batch, 1).to(device),
        positions=positions.repeat(1, batch, 1).to(device),
        patches=torch.randn(batch * views * cells**2, values, device=device, dtype=dtype),
        grid=grid.repeat(batch, 1).to(device),
        lengths=(length,) * batch,
        real=torch.full((batch,), length, device=device),
    )
    fast = FastQwen(vlm, ids[0], grid)
    return RandomQwen(
        vlm=vlm,
        plain=lambda: run_plain(vlm, inputs),
        fast=lambda: fast(inputs.ids, inputs.positions, inputs.patches),
        inputs=inputs,
        joined=lambda actor: FastStep(fast, actor, padding=RightPadding(), length=length),
    )


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
