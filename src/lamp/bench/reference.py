"""The same sizes as users would otherwise run them: diffusers' CogVideoX transformer and plain PyTorch modules.

It is arranged as the authors' release arranges its model, names of parameters included, so that the release's weights load into
it as they are: 256 condition tokens by repetition and padding, two whole evaluations of the Motion Expert, ten passes of the
Action Expert over actions and context together, time running from 1 (noise) to 0. It serves comparison only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError, MissingDependencyError
from lamp.model.lamp import LaMPConfig

CONDITION_TOKENS = 256
"""Length to which the release brings the condition."""
STEPS = 10


class MotionDecoder(nn.Module):
    """The transformer and the rows that fill its condition, named as in the release."""

    def __init__(self, condition_tokens: int, width: int, cogvideox: Any) -> None:
        super().__init__()
        self.learnable_padding_tokens = nn.Parameter(torch.randn(1, condition_tokens, width) * 0.02)
        self.cogvideox = cogvideox


class MotionHead(nn.Module):
    """Condition by repetition and padding, then CogVideoX; the last block's output is caught on the way."""

    def __init__(
        self, *, token_width: int, width: int, heads: int, layers: int, grid: tuple[int, int], frames: int, channels: int,
        time_channels: int, condition_tokens: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.condition_tokens = condition_tokens
        self.vlm_proj = nn.Linear(token_width, width, bias=False)
        cogvideox = self._transformer(width, heads, layers, grid, frames, channels, time_channels)
        self.decoder = MotionDecoder(condition_tokens, width, cogvideox)
        self.last_block: Tensor | None = None
        cogvideox.transformer_blocks[-1].register_forward_hook(self._catch)

    def _transformer(
        self, width: int, heads: int, layers: int, grid: tuple[int, int], frames: int, channels: int, time_channels: int
    ) -> Any:
        try:
            from diffusers import CogVideoXTransformer3DModel
            from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        except ImportError as error:
            raise MissingDependencyError(
                f"the reference needs package {error.name!r}; install it: pip install 'lamp-vla[oracle]'"
            ) from error
        model = CogVideoXTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=channels,
            time_embed_dim=width,
            text_embed_dim=width,
            num_layers=layers,
            patch_size_t=1,
            sample_height=grid[0],
            sample_width=grid[1],
            sample_frames=4 * (frames - 1) + 1,
            max_text_seq_length=self.condition_tokens,
        )
        model.time_proj = Timesteps(time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        model.time_embedding = TimestepEmbedding(time_channels, width, "silu")
        return model

    def _catch(self, _block: nn.Module, _inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.last_block = outputs[0]

    def condition(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b s w"]:
        """Brings the projected tokens to `condition_tokens`: cut, or repeated whole and then padded."""
        projected, room = self.vlm_proj(tokens), self.condition_tokens
        if projected.shape[1] >= room:
            return projected[:, :room]
        whole = room // projected.shape[1]
        rest = room - whole * projected.shape[1]
        padding = self.decoder.learnable_padding_tokens[:, :rest].expand(len(projected), -1, -1)
        return torch.cat([projected.repeat(1, whole, 1), padding], dim=1)

    def forward(
        self, motion: Float[Tensor, "b f c rows columns"], tau: float, condition: Float[Tensor, "b s w"]
    ) -> tuple[Float[Tensor, "b f c rows columns"], Float[Tensor, "b m w"]]:
        """Returns the velocity, and the motion tokens as the last block leaves them."""
        when = torch.full((len(motion),), int(1000 * tau), device=motion.device)
        velocity = self.decoder.cogvideox(
            hidden_states=motion, encoder_hidden_states=condition, timestep=when, return_dict=False
        )[0]
        assert self.last_block is not None
        return velocity, self.last_block


class Guidance(nn.Module):
    """Eq. 4 with torch's own multi-head attention."""

    def __init__(self, *, token_width: int, motion_width: int, heads: int) -> None:
        super().__init__()
        self.motion_proj = nn.Linear(motion_width, token_width)
        self.norm_motion, self.norm_vl = nn.LayerNorm(token_width), nn.LayerNorm(token_width)
        self.cross_attn = nn.MultiheadAttention(token_width, heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, z: Float[Tensor, "b n d"], z_m: Float[Tensor, "b m w"]) -> Float[Tensor, "b n d"]:
        motion = self.norm_motion(self.motion_proj(z_m))
        attended = self.cross_attn(self.norm_vl(z), motion, motion)[0]
        return z + self.gate.sigmoid() * attended


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class ActionMlp(nn.Module):
    """Linear to four times the width, GELU (tanh form), linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class ActionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = ActionMlp(width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ActionModel(nn.Module):
    """Self-attention over [actions; context] at every step; predicts noise minus data."""

    def __init__(
        self, *, token_width: int, width: int, heads: int, layers: int, action_dim: int, state_dim: int,
        time_channels: int, positions: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.time_channels = time_channels
        self.action_encoder = nn.Linear(action_dim + time_channels + state_dim, width)
        self.vlm_proj = nn.Linear(token_width, width)
        self.pos_emb = nn.Parameter(torch.randn(1, positions, width) * 0.02)
        self.blocks = nn.ModuleList(ActionBlock(width, heads) for _ in range(layers))
        self.norm, self.action_decoder = nn.LayerNorm(width), nn.Linear(width, action_dim)

    def forward(
        self,
        actions: Float[Tensor, "b h a"],
        noise_level: float,
        state: Float[Tensor, "b s"],
        z: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b h a"]:
        b, h, _ = actions.shape
        half = self.time_channels // 2
        rates = torch.exp(-math.log(100.0) * torch.arange(half, device=z.device) / half)
        time = torch.cat([(noise_level * rates).cos(), (noise_level * rates).sin()]).to(z.dtype).expand(b, h, -1)
        tokens = self.action_encoder(torch.cat([actions, time, state[:, None].expand(b, h, -1)], dim=-1))
        x = torch.cat([tokens, self.vlm_proj(z)], dim=1)
        x = x + self.pos_emb[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.action_decoder(self.norm(x)[:, :h])


class ReleaseArrangement(nn.Module):
    """From VLM tokens to actions, as the release computes it."""

    def __init__(self, motion_head: MotionHead, motion_guidance: Guidance, action_model: ActionModel) -> None:
        super().__init__()
        self.motion_head, self.motion_guidance, self.action_model = motion_head, motion_guidance, action_model

    @classmethod
    def of(cls, config: LaMPConfig) -> ReleaseArrangement:
        """Builds it at the sizes of one of our models.

        Raises:
            ConfigError: The model lacks a part.
        """
        motion, guidance, action = config.motion, config.guidance, config.action
        if motion is None or guidance is None or action is None:
            raise ConfigError("the reference has a Motion Expert, guidance and an Action Expert; the recipe lacks one.")
        head = MotionHead(
            token_width=config.token_width,
            width=motion.width,
            heads=motion.heads,
            layers=motion.layers,
            grid=motion.grid,
            frames=motion.horizon // motion.frames_per_token,
            channels=3 * motion.frames_per_token,
            time_channels=motion.time_channels,
            condition_tokens=CONDITION_TOKENS,
        )
        model = ActionModel(
            token_width=config.token_width,
            width=action.width,
            heads=action.heads,
            layers=action.layers,
            action_dim=action.action_dim,
            state_dim=action.state_dim,
            time_channels=action.time_channels,
            positions=action.positions,
        )
        return cls(
            head, Guidance(token_width=config.token_width, motion_width=motion.width, heads=guidance.heads), model
        )

    def motion_hidden(
        self, z: Float[Tensor, "b n d"], noise: Float[Tensor, "b f c rows columns"]
    ) -> Float[Tensor, "b m w"]:
        """One Euler step to 1/10, and what a second evaluation there leaves behind."""
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
