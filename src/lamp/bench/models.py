"""What is measured: the policy of any recipe with random weights, and the same sizes as the authors' release arranges them.

Speed does not depend on the values of the weights, so a full-size model, Qwen3-VL included, is measured without downloading it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError, MissingDependencyError
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.fast import FastActor
from lamp.model.fast_step import FastStep
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.qwen3_vl import QwenInputs, run_plain
from lamp.model.qwen_fast import FastQwen
from lamp.model.qwen_files import missing
from lamp.model.small import SmallBackbone, SmallBackboneConfig
from lamp.recipes import recipe as find_recipe
from lamp.recipes.kinds import AnyRecipe, ModelRecipe
from lamp.types import Encoded, Observations, RightPadding

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
        vlm.eval().requires_grad_(False)

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


CONDITION_TOKENS = 256
"""Number of condition tokens in the release."""
STEPS = 10


class MotionHead(nn.Module):
    """CogVideoX over the motion tokens; a hook keeps the last block's output."""

    def __init__(self, config: MotionExpertConfig, condition_tokens: int) -> None:
        try:
            from diffusers import CogVideoXTransformer3DModel
            from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        except ImportError as error:
            raise MissingDependencyError(
                f"the reference needs package {error.name!r}; install it: pip install 'lamp-vla[oracle]'"
            ) from error
        super().__init__()
        self.condition_tokens, channels = condition_tokens, 3 * config.frames_per_token
        self.shape = (config.horizon // config.frames_per_token, channels, *config.grid)
        self.vlm_proj = nn.Linear(config.token_width, config.width, bias=False)
        cogvideox = CogVideoXTransformer3DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=channels,
            out_channels=channels,
            time_embed_dim=config.width,
            text_embed_dim=config.width,
            num_layers=config.layers,
            patch_size_t=1,
            sample_height=config.grid[0],
            sample_width=config.grid[1],
            sample_frames=4 * (self.shape[0] - 1) + 1,
            max_text_seq_length=condition_tokens,
        )
        cogvideox.time_proj = Timesteps(config.time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        cogvideox.time_embedding = TimestepEmbedding(config.time_channels, config.width, "silu")
        self.decoder: Any = nn.ModuleDict({"cogvideox": cogvideox})
        padding = nn.Parameter(torch.randn(1, condition_tokens, config.width) * 0.02)
        self.decoder.register_parameter("learnable_padding_tokens", padding)
        cogvideox.transformer_blocks[-1].register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.last_block = outputs[0]

    def condition(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b s w"]:
        """Brings the projected tokens to `condition_tokens`: truncated, or repeated and then padded."""
        projected, length = self.vlm_proj(tokens), self.condition_tokens
        repeats = max(1, length // projected.shape[1])
        padding = self.decoder.learnable_padding_tokens[:, : max(0, length - repeats * projected.shape[1])]
        repeated = projected.repeat(1, repeats, 1)[:, :length]
        return torch.cat([repeated, padding.expand(len(projected), -1, -1)], dim=1)

    def forward(
        self, motion: Float[Tensor, "b f c rows columns"], tau: float, condition: Float[Tensor, "b s w"]
    ) -> tuple[Float[Tensor, "b f c rows columns"], Float[Tensor, "b m w"]]:
        """Returns the velocity and the motion tokens of the last block."""
        timestep = torch.full((len(motion),), int(1000 * tau), device=motion.device)
        velocity = self.decoder.cogvideox(
            hidden_states=motion, encoder_hidden_states=condition, timestep=timestep, return_dict=False
        )[0]
        return velocity, self.last_block


class Guidance(nn.Module):
    """Eq. 4 with torch's own multi-head attention."""

    def __init__(self, config: GuidanceConfig) -> None:
        super().__init__()
        width = config.token_width
        self.motion_proj = nn.Linear(config.motion_width, width)
        self.norm_motion, self.norm_vl = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, z: Float[Tensor, "b n d"], z_m: Float[Tensor, "b m w"]) -> Float[Tensor, "b n d"]:
        motion = self.norm_motion(self.motion_proj(z_m))
        return z + self.gate.sigmoid() * self.cross_attn(self.norm_vl(z), motion, motion)[0]


class ActionBlock(nn.Module):
    """A pre-norm transformer block with a joint projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.attn["proj"](attended.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x)), approximate="tanh"))


class ActionModel(nn.Module):
    """Self-attention over [actions; context] at every step; predicts noise minus data."""

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        width, self.time_channels = config.width, config.time_channels
        self.action_encoder = nn.Linear(config.action_dim + self.time_channels + config.state_dim, width)
        self.vlm_proj = nn.Linear(config.token_width, width)
        self.pos_emb = nn.Parameter(torch.randn(1, config.positions, width) * 0.02)
        self.blocks = nn.ModuleList(ActionBlock(width, config.heads) for _ in range(config.layers))
        self.norm, self.action_decoder = nn.LayerNorm(width), nn.Linear(width, config.action_dim)

    def forward(
        self, actions: Float[Tensor, "b h a"], time: float, state: Float[Tensor, "b s"], z: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b h a"]:
        b, h, _ = actions.shape
        half = self.time_channels // 2
        phases = time * torch.exp(-math.log(100.0) * torch.arange(half, device=z.device) / half)
        embedded = torch.cat([phases.cos(), phases.sin()]).to(z.dtype).expand(b, h, -1)
        tokens = self.action_encoder(torch.cat([actions, embedded, state[:, None].expand(b, h, -1)], dim=-1))
        x = torch.cat([tokens, self.vlm_proj(z)], dim=1)
        x = x + self.pos_emb[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.action_decoder(self.norm(x)[:, :h])


class ReleaseArrangement(nn.Module):
    """From VLM tokens to actions, at the sizes of one of our models.

    Raises:
        ConfigError: The model lacks a part.
    """

    def __init__(self, config: LaMPConfig, condition_tokens: int = CONDITION_TOKENS) -> None:
        super().__init__()
        if config.motion is None or not isinstance(config.guidance, GuidanceConfig) or config.action is None:
            raise ConfigError("the reference has a Motion Expert, guidance and an Action Expert; the recipe lacks one.")
        self.motion_head = MotionHead(config.motion, condition_tokens)
        self.motion_guidance, self.action_model = Guidance(config.guidance), ActionModel(config.action)

    def motion_hidden(
        self, z: Float[Tensor, "b n d"], noise: Float[Tensor, "b f c rows columns"]
    ) -> Float[Tensor, "b m w"]:
        """One Euler step to 1/10, and the hidden state of a second evaluation there."""
        condition = self.motion_head.condition(z)
        velocity, _ = self.motion_head(noise, 0.0, condition)
        return self.motion_head(noise + velocity / STEPS, 1 / STEPS, condition)[1]

    @torch.inference_mode()
    def act(
        self,
        z: Float[Tensor, "b n d"],
        state: Float[Tensor, "b s"],
        motion_noise: Float[Tensor, "b f c rows columns"],
        actions: Float[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk from action noise."""
        guided = self.motion_guidance(z, self.motion_hidden(z, motion_noise))
        for step in range(STEPS):
            actions = actions - self.action_model(actions, 1 - step / STEPS, state, guided) / STEPS
        return actions
