"""The authors' release arrangement of the model, in diffusers' CogVideoX transformer and plain PyTorch modules, for comparison.

Parameter names and arithmetic are the release's, so its weights load unchanged: the condition is repeated and padded to a fixed
number of tokens, the Motion Expert is evaluated twice, the Action Expert runs ten times over actions and context together, and
the action's time runs from 1 (noise) to 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError, MissingDependencyError
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig

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
