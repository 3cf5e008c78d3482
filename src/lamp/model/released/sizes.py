"""The sizes of a released model, by the names that files laid out like the release give them, and our configuration of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lamp.errors import ConfigError, MismatchError
from lamp.model.action_expert import ActionExpertConfig, Joint
from lamp.model.guidance import GuidanceConfig, Tanh
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig, RepeatAndPad

MOTION_TIME_CHANNELS = 512
"""Sines and cosines of the motion time, whatever the width."""
ACTION_FREQUENCIES = (0.01, 1.0)
"""Of the noise level in the Action Expert: a longest period of 100 (times 2 pi)."""
ACTION_DROPOUT = 0.1
"""Of the Action Expert's blocks in training; no setting of the published code."""
PATCH = 2
LARGEST = 1_000_000

Part = Literal["motion_head", "motion_guidance", "action_model"]
MOTION: frozenset[Part] = frozenset({"motion_head"})
"""What LaMP-Motion-Expert holds."""
POLICY: frozenset[Part] = frozenset({"motion_head", "motion_guidance", "action_model"})
"""What LaMP-LIBERO holds, beside the VLM."""


@dataclass(frozen=True, kw_only=True)
class ReleasedSizes:
    """Sizes under the release's names; the defaults are those of the published weights."""

    vl: int = 2560
    """Width of the VLM's features."""
    latent: int = 1024
    """Width of the Motion Expert."""
    pack: int = 2
    """Frames packed into the channels of one."""
    grid: int = 20
    """Points along each side of the image."""
    T: int = 32
    """Flow steps."""
    cond: int = 256
    """Condition tokens."""
    m_heads: int = 16
    m_hd: int = 64
    """Width of a head of the Motion Expert."""
    m_layers: int = 12
    g_heads: int = 40
    act_dim: int = 1024
    """Width of the Action Expert (the length of an action is `A`)."""
    act_heads: int = 16
    act_depth: int = 24
    A: int = 7
    S: int = 8
    """Values of the state."""
    H: int = 10
    """Actions in a chunk."""
    dim_time: int = 32
    """Sines and cosines of the action's noise level."""
    maxlen: int = 512
    """Learned positions of the Action Expert."""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_size(field.name, getattr(self, field.name))
        if self.m_heads * self.m_hd != self.latent:
            heads = f"{self.m_heads} heads of {self.m_hd} (m_heads, m_hd)"
            raise ConfigError(f"released sizes: {heads} do not make the width latent = {self.latent}.")

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> ReleasedSizes:
        """Reads sizes from a mapping that has exactly these names.

        Raises:
            ConfigError: A name is missing or unknown, or a size is impossible.
        """
        known = [field.name for field in fields(cls)]
        missing, other = [name for name in known if name not in obj], [name for name in obj if name not in known]
        if missing or other:
            problem = f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(map(str, other)) or 'none'}"
            raise ConfigError(f"released sizes: {problem}. Expected exactly {', '.join(known)}.")
        for name in known:
            _check_size(name, obj[name])
        return cls(**obj)

    def config(self, parts: frozenset[Part] = POLICY, *, dropout: float = 0.1) -> LaMPConfig:
        """Returns our configuration of a released model that has these parts.

        Raises:
            ConfigError: The sizes do not go together.
        """
        motion = MotionExpertConfig(
            token_width=self.vl,
            width=self.latent,
            layers=self.m_layers,
            heads=self.m_heads,
            grid=(self.grid, self.grid),
            horizon=self.T,
            patch=PATCH,
            frames_per_token=self.pack,
            conditioning=RepeatAndPad(tokens=self.cond),
            time_channels=MOTION_TIME_CHANNELS,
            whole_time=True,
        )
        if "action_model" not in parts:
            return LaMPConfig(token_width=self.vl, motion=motion, guidance=None, action=None)
        guidance = GuidanceConfig(token_width=self.vl, motion_width=self.latent, heads=self.g_heads, dropout=dropout)
        action = ActionExpertConfig(
            token_width=self.vl,
            width=self.act_dim,
            layers=self.act_depth,
            heads=self.act_heads,
            chunk=self.H,
            action_dim=self.A,
            state_dim=self.S,
            attention=Joint(),
            time_channels=self.dim_time // 2 * 2,
            time_frequencies=ACTION_FREQUENCIES,
            positions=self.maxlen,
            dropout=ACTION_DROPOUT,
        )
        return LaMPConfig(token_width=self.vl, motion=motion, guidance=guidance, action=action)


def _check_size(name: str, value: object) -> None:
    least = 0 if name == "S" else 1
    if type(value) is not int or not least <= value <= LARGEST:
        raise ConfigError(f"released sizes: {name} is {value!r}; expected a whole number of {least} to {LARGEST}.")


def sizes_of(config: LaMPConfig) -> ReleasedSizes:
    """Returns the released sizes of one of our models.

    Raises:
        MismatchError: The release's arithmetic cannot express the model; all reasons are listed.
    """
    motion, guidance, action = config.motion, config.guidance, config.action
    if guidance is not None and not isinstance(guidance, GuidanceConfig):
        raise MismatchError(f"the release fuses by gated cross-attention; this model has {type(guidance).__name__}.")
    if motion is None:
        raise MismatchError("a released model needs a Motion Expert; this one has model.motion = None.")
    cond = motion.conditioning.tokens if isinstance(motion.conditioning, RepeatAndPad) else ReleasedSizes.cond
    sizes = ReleasedSizes(
        vl=config.token_width,
        latent=motion.width,
        pack=motion.frames_per_token,
        grid=motion.grid[0],
        T=motion.horizon,
        cond=cond,
        m_heads=motion.heads,
        m_hd=motion.width // motion.heads,
        m_layers=motion.layers,
    )
    parts, dropout = MOTION, 0.1
    if action is not None and guidance is not None:
        parts, dropout = POLICY, guidance.dropout
        sizes = replace(
            sizes,
            g_heads=guidance.heads,
            act_dim=action.width,
            act_heads=action.heads,
            act_depth=action.layers,
            A=action.action_dim,
            S=action.state_dim,
            H=action.chunk,
            dim_time=action.time_channels,
            maxlen=action.positions,
        )
    _check_expressible(config, sizes.config(parts, dropout=dropout))
    return sizes


def _check_expressible(config: LaMPConfig, released: LaMPConfig) -> None:
    reasons = []
    for name in ("motion", "guidance", "action"):
        ours, theirs = getattr(config, name), getattr(released, name)
        if ours is None or theirs is None:
            continue
        for field in fields(theirs):
            have, can = getattr(ours, field.name), getattr(theirs, field.name)
            # The last block may be named by its number; how the gate's projection starts, and what training drops, is no part
            # of the arithmetic.
            same = field.name == "hidden_layer" and have % ours.layers == ours.layers - 1
            same = same or field.name == "dropout" or (field.name == "gate" and not isinstance(have, Tanh))
            if have != can and not same:
                reasons.append(f"model.{name}.{field.name} is {have}, the release has {can}")
    if reasons:
        raise MismatchError(f"this model cannot be written as a released one: {'; '.join(reasons)}.")
