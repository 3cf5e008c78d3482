"""Qwen3-VL at its published sizes with random weights: what the frozen backbone costs, without downloading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamp.data.padding import RightPadding
from lamp.model.backbone import frozen
from lamp.model.fast import FastActor
from lamp.model.fast_step import FastStep
from lamp.model.qwen3_vl import QwenInputs, run_plain
from lamp.model.qwen_fast import FastQwen
from lamp.model.qwen_files import missing


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
