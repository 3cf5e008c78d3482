"""The Motion Expert (Section III-B): a 3-D transformer that predicts the velocity of dense 3-D scene flow.

Tokens are 2x2 blocks of grid points, several flow steps at a time; they attend jointly with the backbone's tokens z_t, and
time drives AdaLN in every block, as in CogVideoX.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError
from lamp.flow_matching import Preconditioning
from lamp.model.layers import (
    AdaLayerNorm,
    Mlp,
    Modulation,
    TimeEmbedding,
    attention,
    check_heads,
    grid_positions,
    merge_heads,
    split_heads,
)
from lamp.types import Encoded


@dataclass(frozen=True, kw_only=True)
class JointTokens:
    """Motion tokens attend to the backbone's tokens as they are; padding is masked."""


@dataclass(frozen=True, kw_only=True)
class RepeatAndPad:
    """Motion tokens attend to exactly `tokens` of them, without a mask: more are cut; fewer are repeated, whole, as often as
    they fit, and learned rows fill the rest. The release's way.

    Deviation: in a batch, the release repeats the padding too. Here it is left out first, so that a sample gets what it would
    get alone.
    """

    tokens: int = 256

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"RepeatAndPad: {self.tokens} tokens given, at least 1 expected (256 in the release).")


Conditioning = JointTokens | RepeatAndPad


@dataclass(frozen=True, kw_only=True)
class MotionExpertConfig:
    """Sizes of the Motion Expert; the defaults are the paper's (Table III)."""

    token_width: int
    """Width of the backbone's tokens."""
    width: int = 1024
    layers: int = 12
    heads: int = 16
    grid: tuple[int, int] = (20, 20)
    """(K_h, K_w): rows and columns of grid points."""
    horizon: int = 32
    """T: flow steps."""
    patch: int = 2
    """Grid points along each side of a token."""
    frames_per_token: int = 2
    """Flow steps packed into a token's channels. Deviation: the paper's patch is one step; 1600 tokens fit better than 3200."""
    hidden_layer: int = -1
    """The block whose output is z_m, counted from the end where negative: the paper's is the last."""
    conditioning: Conditioning = field(default_factory=JointTokens)
    """How z enters. Deviation: the paper says via AdaLN, which cannot hold a set of tokens of any length."""
    time_channels: int = 512
    whole_time: bool = False
    """Embed the integer part of 1000 tau, as the released weights were trained; False: 1000 tau itself."""
    preconditioning: Preconditioning | None = None
    """Predict what the noisy motion does not tell by itself; None: the velocity, as the paper."""

    def __post_init__(self) -> None:
        check_heads("Motion Expert", self.width, self.heads)
        if any(side % self.patch for side in self.grid):
            raise ConfigError(f"Motion Expert: patch {self.patch} does not divide the grid {self.grid}.")
        if self.horizon % self.frames_per_token:
            fitting = [n for n in range(1, self.horizon + 1) if self.horizon % n == 0]
            message = f"frames_per_token {self.frames_per_token} does not divide the horizon {self.horizon}"
            raise ConfigError(f"Motion Expert: {message}; these do: {fitting}.")
        if not -self.layers <= self.hidden_layer < self.layers:
            limits = f"{-self.layers} to {self.layers - 1}"
            raise ConfigError(f"Motion Expert: hidden_layer {self.hidden_layer} given, {limits} expected.")
        if self.preconditioning and len(self.preconditioning.data_std) != 3:
            given = self.preconditioning.data_std
            raise ConfigError(f"Motion Expert: data_std {given} given, three numbers (du, dv, dd) expected.")

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Motion tokens along time, rows and columns."""
        rows, columns = self.grid
        return self.horizon // self.frames_per_token, rows // self.patch, columns // self.patch

    @property
    def tokens(self) -> int:
        """m: the number of motion tokens."""
        frames, rows, columns = self.token_grid
        return frames * rows * columns

    @property
    def token_values(self) -> int:
        """Scene-flow values in one token."""
        return 3 * self.frames_per_token * self.patch**2


class MotionBlock(nn.Module):
    """Joint attention over [condition; motion] and an MLP, both shared, with each stream modulated by time on its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = AdaLayerNorm(width, width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.norm_query = nn.LayerNorm(width // heads, eps=1e-6)
        self.norm_key = nn.LayerNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        self.norm_mlp = AdaLayerNorm(width, width)
        self.mlp = Mlp(width)

    def forward(
        self,
        condition: Float[Tensor, "b n d"],
        motion: Float[Tensor, "b m d"],
        time: Float[Tensor, "b d"],
        mask: Bool[Tensor, "b 1 1 nm"] | None,
        *,
        last: bool = False,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Returns both streams; in the `last` block nobody reads the condition again, so it is returned as it came."""
        on_motion, on_condition = self.norm_attention.modulations(time)
        then_motion, then_condition = self.norm_mlp.modulations(time)
        joint = [self.norm_attention(condition, on_condition), self.norm_attention(motion, on_motion)]
        query, key, value = (
            split_heads(part, self.heads) for part in self.query_key_value(torch.cat(joint, dim=1)).chunk(3, dim=-1)
        )
        asking = self.norm_query(query[:, :, condition.shape[1] :] if last else query)
        attended = merge_heads(attention(asking.to(value.dtype), self.norm_key(key).to(value.dtype), value, mask))
        motion_out = self._finish(motion, attended[:, -motion.shape[1] :], on_motion, then_motion)
        if last:
            return condition, motion_out
        return self._finish(condition, attended[:, : condition.shape[1]], on_condition, then_condition), motion_out

    def _finish(
        self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b n d"], first: Modulation, second: Modulation
    ) -> Float[Tensor, "b n d"]:
        x = x + first.gate * self.out(attended)
        return x + second.gate * self.mlp(self.norm_mlp(x, second))


class MotionExpert(nn.Module):
    """v_theta(M^tau, tau, z_t), and the hidden state z_m on the way there."""

    positions: Tensor

    def __init__(self, config: MotionExpertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.condition_in = nn.Linear(config.token_width, width)
        if isinstance(config.conditioning, RepeatAndPad):
            self.filling = nn.Parameter(torch.randn(config.conditioning.tokens, width) * 0.01)
        self.motion_in = nn.Linear(config.token_values, width)
        self.register_buffer("positions", grid_positions(*config.token_grid, width), persistent=False)
        self.time = TimeEmbedding(config.time_channels, width, whole=config.whole_time)
        self.blocks = nn.ModuleList(MotionBlock(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.modulate_out = nn.Linear(width, 2 * width)
        self.velocity_out = nn.Linear(width, config.token_values)
        for layer in (self.modulate_out, self.velocity_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, motion: Float[Tensor, "b k t 3"], tau: Float[Tensor, " b"], encoded: Encoded
    ) -> Float[Tensor, "b k t 3"]:
        """Returns the predicted velocity (Eq. 3)."""
        time = self.time(tau)
        tokens = self.norm(self._run(self._scaled(motion, tau), time, encoded, self.config.layers))
        shift, scale = self.modulate_out(functional.silu(time))[:, None].chunk(2, dim=-1)
        predicted = self.unpatchify(self.velocity_out(self.norm_out(tokens) * (1 + scale) + shift))
        if self.config.preconditioning is None:
            return predicted
        _, skip, out = self.config.preconditioning.coefficients(tau, motion)
        return skip * motion + out * predicted.float()

    def error_scale(self, tau: Float[Tensor, " b"], motion: Float[Tensor, "b k t 3"]) -> Tensor:
        """The unit in which the loss measures the velocity's error: 1 but for a preconditioned network."""
        if self.config.preconditioning is None:
            return torch.ones((), device=motion.device)
        return self.config.preconditioning.coefficients(tau, motion)[2]

    def hidden(
        self, motion: Float[Tensor, "b k t 3"], tau: Float[Tensor, " b"], encoded: Encoded
    ) -> Float[Tensor, "b m d"]:
        """Returns z_m: the motion tokens as they leave block `hidden_layer`, before any final norm."""
        depth = self.config.hidden_layer % self.config.layers + 1
        return self._run(self._scaled(motion, tau), self.time(tau), encoded, depth)

    def _scaled(self, motion: Float[Tensor, "b k t 3"], tau: Float[Tensor, " b"]) -> Float[Tensor, "b k t 3"]:
        if self.config.preconditioning is None:
            return motion
        return self.config.preconditioning.coefficients(tau, motion)[0] * motion

    def _run(self, motion: Tensor, time: Tensor, encoded: Encoded, depth: int) -> Float[Tensor, "b m d"]:
        condition, seen = self.condition(encoded)
        tokens = self.motion_in(self.patchify(motion).to(self.motion_in.weight.dtype)) + self.positions
        mask = None if seen is None else torch.cat([seen, seen.new_ones(tokens.shape[:2])], dim=1)[:, None, None]
        for index, block in enumerate(self.blocks[:depth], start=1):
            condition, tokens = block(condition, tokens, time, mask, last=index == depth)
        return tokens

    def condition(self, encoded: Encoded) -> tuple[Float[Tensor, "b c d"], Bool[Tensor, "b c"] | None]:
        """Returns the condition tokens, and which of them are real: None where all are."""
        tokens = self.condition_in(encoded.tokens.to(self.condition_in.weight.dtype))
        if isinstance(self.config.conditioning, JointTokens):
            return tokens, encoded.mask
        # Row p of the result is token p mod n, while p is within a whole number of repetitions. Every size and address stays
        # on the device, so that nothing waits for the host.
        real = encoded.mask.sum(1, keepdim=True).clamp(min=1)
        place = torch.arange(self.config.conditioning.tokens, device=tokens.device).expand(len(tokens), -1)
        first = encoded.mask.int().argsort(dim=1, descending=True, stable=True)
        chosen = first.gather(1, place % real)
        repeated = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
        filled = place.shape[1] // real * real
        rest = (place - filled).clamp(min=0)
        whole = (place < filled) | (real > place.shape[1])
        # The projection's bias is part of every row, as if the rows had come through it.
        filling = (self.filling + self.condition_in.bias).to(tokens.dtype)
        return torch.where(whole[..., None], repeated, filling[rest]), None

    def patchify(self, motion: Float[Tensor, "b k t 3"]) -> Float[Tensor, "b m v"]:
        """Cuts a grid (row by row) of paths into tokens of (axis, flow step, row, column) values."""
        (frames, rows, columns), patch = self.config.token_grid, self.config.patch
        x = motion.reshape(-1, rows, patch, columns, patch, frames, self.config.frames_per_token, 3)
        return x.permute(0, 5, 1, 3, 7, 6, 2, 4).flatten(4).flatten(1, 3)

    def unpatchify(self, tokens: Float[Tensor, "b m v"]) -> Float[Tensor, "b k t 3"]:
        """The inverse of `patchify`."""
        (frames, rows, columns), patch = self.config.token_grid, self.config.patch
        x = tokens.reshape(-1, frames, rows, columns, 3, self.config.frames_per_token, patch, patch)
        return x.permute(0, 2, 6, 3, 7, 1, 5, 4).reshape(-1, rows * columns * patch**2, self.config.horizon, 3)
