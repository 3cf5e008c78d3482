"""The policy of any recipe with random weights, Qwen3-VL included, and a batch of inputs for it.

Speed does not depend on the values of the weights, so a full-size model is measured without downloading it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lamp.data.padding import RightPadding
from lamp.errors import ConfigError
from lamp.model.backbone import frozen
from lamp.model.fast import FastActor
from lamp.model.fast_step import FastStep
from lamp.model.lamp import LaMP
from lamp.model.qwen3_vl import QwenInputs, run_plain
from lamp.model.qwen_fast import FastQwen
from lamp.model.qwen_files import missing
from lamp.model.small import SmallBackbone, SmallBackboneConfig
from lamp.recipes import recipe as find_recipe
from lamp.recipes.kinds import AnyRecipe, ModelRecipe
from lamp.types import Encoded, Observations

IMAGE_TOKENS = 64 + 2
"""Of a 224x224 view, which Qwen3-VL's preprocessing enlarges to 256x256: 16x16 patches merged two by two, start and end marks."""
TEXT_TOKENS = 32
"""Of a prompt whose length the recipe leaves open."""


def qwen_config(
    *, width: int = 2560, layers: int = 36, heads: int = 32, key_value_heads: int = 8, head_width: int = 128,
    mlp: int = 9728, vision_width: int = 1024, vision_layers: int = 24, vision_heads: int = 16, vision_mlp: int = 4096,
    deepstack: tuple[int, ...] = (5, 11, 17),
) -> Any:  # fmt: skip
    """Returns transformers' configuration of a Qwen3-VL; the defaults are those of Qwen3-VL-4B (its config.json on the hub)."""
    from transformers import Qwen3VLConfig

    quarter = head_width // 8
    sections = [head_width // 2 - 2 * (quarter + quarter // 4), quarter + quarter // 4, quarter + quarter // 4]
    return Qwen3VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "head_dim": head_width,
            "vocab_size": 151_936,
            "use_cache": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_width,
            "intermediate_size": vision_mlp,
            "num_heads": vision_heads,
            "out_hidden_size": width,
            "deepstack_visual_indexes": list(deepstack),
        },
    )


class RandomQwen:
    """A Qwen3-VL with random weights, and random views and text that it is run on as `Qwen3VLBackbone.forward` runs it.

    Args:
        views: number of images of one observation.
        text_tokens: number of text tokens beside them.
        batch: number of observations.
        config: transformers' configuration; Qwen3-VL-4B's if None.
        side: height and width of an image after the model's own enlargement [px].

    Raises:
        MissingDependencyError: transformers is not installed.
    """

    def __init__(
        self, *, views: int, text_tokens: int, batch: int, device: torch.device, dtype: torch.dtype, config: Any = None,
        side: int = 256,
    ) -> None:  # fmt: skip
        try:
            from transformers import Qwen3VLModel
        except ImportError as error:
            raise missing(error) from error
        config = config or qwen_config()
        config._attn_implementation = "sdpa"
        default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                vlm: Any = Qwen3VLModel(config)
        finally:
            torch.set_default_dtype(default_dtype)
        vlm.language_model.norm = nn.Identity()
        frozen(vlm)

        vision = config.vision_config
        cells = side // vision.patch_size
        image = [config.image_token_id] * (cells // 2) ** 2
        text = torch.randint(1000, (text_tokens,)).tolist()
        ids = torch.tensor([[config.vision_start_token_id, *image, config.vision_end_token_id] * views + text])
        grid = torch.tensor([[1, cells, cells]] * views)
        positions, _ = vlm.get_rope_index(ids, (ids == config.image_token_id).int(), image_grid_thw=grid)
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        length = ids.shape[1]
        self.vlm, self._fast, self._length = vlm, FastQwen(vlm, ids[0], grid), length
        self.inputs = QwenInputs(
            ids=ids.repeat(batch, 1).to(device),
            positions=positions.repeat(1, batch, 1).to(device),
            patches=torch.randn(batch * views * cells**2, values, device=device, dtype=dtype),
            grid=grid.repeat(batch, 1).to(device),
            lengths=(length,) * batch,
            real=torch.full((batch,), length, device=device),
        )

    def plain(self) -> Tensor:
        """Runs transformers' own forward."""
        return run_plain(self.vlm, self.inputs)

    def fast(self) -> Tensor:
        """Runs what an accelerated `Qwen3VLBackbone` runs."""
        return self._fast(self.inputs.ids, self.inputs.positions, self.inputs.patches)

    def fast_step(self, actor: FastActor) -> Callable[..., Tensor]:
        """Returns the VLM and a policy's experts in one, from the pixels on; it takes `BenchModel.expert_inputs`."""
        return partial(FastStep(self._fast, actor, padding=RightPadding(), length=self._length).act, self.inputs)


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A policy with random weights and one batch of inputs."""

    model: LaMP
    encoded: Encoded
    state: Tensor
    motion_noise: Tensor | None
    action_noise: Tensor
    vlm: nn.Module | None = None
    """The frozen backbone, where the recipe has one."""
    encode: Callable[[], Any] | None = None
    """Runs the backbone on the batch's observations."""
    encode_fast: Callable[[], Tensor] | None = None
    """Runs it the fast way, where it has one."""
    fast_step: Callable[[FastActor], Callable[..., Tensor]] | None = None
    """Joins it with the experts, from the pixels on, where that is possible."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of `LaMP.act`."""
        return {"encoded": self.encoded, **self.expert_inputs}

    @property
    def expert_inputs(self) -> dict[str, Any]:
        """The same without what the backbone computes."""
        return {"state": self.state, "motion_noise": self.motion_noise, "action_noise": self.action_noise}


def build_bench_model(
    name: str, *, batch: int, device: torch.device, dtype: torch.dtype, vlm: bool = True
) -> BenchModel:
    """Builds the policy of a recipe, and its backbone where `vlm` is true and it has one.

    The backbone's weights are in `dtype`; the experts stay in float32, as a checkpoint holds them.

    Raises:
        ConfigError: The recipe has no policy.
    """
    recipe = find_recipe(name)
    config = recipe.models.get("policy")
    if config is None or config.action is None:
        raise ConfigError(f"recipe {recipe.name!r} has no policy to measure; `lamp recipe list` shows those that have.")
    torch.manual_seed(0)
    with torch.device(device):
        model = fill_zeros(LaMP(config)).eval()
        tokens, motion = _token_count(recipe), model.motion_shape
        inputs = {
            "encoded": Encoded(
                tokens=torch.randn(batch, tokens, config.token_width).to(dtype),
                mask=torch.ones(batch, tokens, dtype=torch.bool),
            ),
            "state": torch.randn(batch, config.action.state_dim),
            "motion_noise": None if motion is None else torch.randn(batch, *motion),
            "action_noise": torch.randn(batch, config.action.chunk, config.action.action_dim),
        }
    return BenchModel(model=model, **inputs, **(_backbone(recipe, batch, device, dtype) if vlm else {}))


def fill_zeros(model: LaMP) -> LaMP:
    """Gives random values to parameters that start at zero: multiplied by zeros, no difference would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def _token_count(recipe: AnyRecipe) -> int:
    if isinstance(recipe, ModelRecipe):
        return recipe.tokens
    backbone = recipe.backbone
    if isinstance(backbone, SmallBackboneConfig):
        small = SmallBackbone(backbone)
        return sum(map(small.tokens_of, dict(backbone.cameras))) + backbone.text_tokens
    return len(backbone.cameras) * IMAGE_TOKENS + (backbone.text_tokens or TEXT_TOKENS)


def _backbone(recipe: AnyRecipe, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of a `BenchModel` that are about its backbone."""
    if isinstance(recipe, ModelRecipe):
        return {}
    config = recipe.backbone
    if isinstance(config, SmallBackboneConfig):
        small = SmallBackbone(config).to(device)
        images = {
            name: torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, device=device)
            for name, side in config.cameras
        }
        instructions = ("pick up the milk and place it in the basket",) * batch
        observations = Observations(images=images, instructions=instructions)
        return {"vlm": small, "encode": lambda: small.encode(observations)}
    views, text_tokens = len(config.cameras), config.text_tokens or TEXT_TOKENS
    qwen = RandomQwen(views=views, text_tokens=text_tokens, batch=batch, device=device, dtype=dtype)
    ways = {"encode": qwen.plain, "encode_fast": qwen.fast, "fast_step": qwen.fast_step}
    return {"vlm": qwen.vlm, **ways}
