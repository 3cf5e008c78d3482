"""The other ways in which a motion prior reaches the Action Expert: the ablations of Section IV-B, and tokens of its context, be
it z_m or a decoded path. `FlowHead` has none of it where a policy acts: it teaches the Action Expert about motion in training.

Deviation: in the ablations z_m has a token for each patch of the scene and the Action Expert one for each action, and the
paper does not say which correspond. There each action has a learned query that gathers what it needs from all of z_m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError
from lamp.flow_matching import velocity_errors
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import Fusion, FusionSettings, GuidanceConfig
from lamp.model.layers import CrossAttention, Mlp, check_heads
from lamp.model.motion_expert import MotionExpertConfig
from lamp.types import AddedMotion, Encoded, Guided, JoinedMotion, Motion, MotionTokens


@dataclass(frozen=True, kw_only=True)
class AddFusion(FusionSettings):
    """Add: z_m, one vector an action, is mapped linearly for every layer and added to its action tokens; there is no gate."""

    motion_width: int = 1024
    """d_m: width of z_m."""
    heads: int = 16
    """Of the attention that pools z_m."""

    def __post_init__(self) -> None:
        check_heads("add fusion", self.motion_width, self.heads)

    def build(self, action: ActionExpertConfig, motion: MotionExpertConfig) -> MotionAddition:
        return MotionAddition(self, action)


@dataclass(frozen=True, kw_only=True)
class ConcatFusion(FusionSettings):
    """Concat+MLP: z_m, one vector an action, is concatenated to the action tokens before the first layer, and a two-layer MLP
    brings both back to the tokens' width."""

    motion_width: int = 1024
    """d_m: width of z_m."""
    heads: int = 16
    """Of the attention that pools z_m."""

    def __post_init__(self) -> None:
        check_heads("concat fusion", self.motion_width, self.heads)

    @property
    def joined_width(self) -> int:
        return self.motion_width

    def build(self, action: ActionExpertConfig, motion: MotionExpertConfig) -> MotionConcatenation:
        return MotionConcatenation(self, action)


@dataclass(frozen=True, kw_only=True)
class TokenFusion(FusionSettings):
    """z_m as tokens of the Action Expert's context beside z, each with a learned position of its own; there is no gate."""

    motion_width: int = 1024
    """d_m: width of z_m."""
    heads: int = 16
    """Of the attention that pools z_m."""
    tokens: int | None = 8
    """How many tokens learned queries pool z_m to; None: each token of z_m is one, and nothing is pooled."""

    def __post_init__(self) -> None:
        check_heads("token fusion", self.motion_width, self.heads)
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(
                f"token fusion: {self.tokens} tokens given, at least 1 expected, or None for as many as z_m has."
            )

    def build(self, action: ActionExpertConfig, motion: MotionExpertConfig) -> MotionTokenizer:
        return MotionTokenizer(self, action, motion)


@dataclass(frozen=True, kw_only=True)
class PathFusion(FusionSettings):
    """A decoded path as tokens of the Action Expert's context: not z_m, but the few numbers that the whole scene flow comes to.

    One evaluation of the Motion Expert at tau = 0 gives an estimate of the flow, which `pooled_path` reduces to a token for the
    whole image and one for each coarse cell.
    """

    cells: tuple[int, int] = (2, 2)
    """Rows and columns of coarse cells; (1, 1): the whole image alone."""
    steps: int = 8
    """Equal parts of the horizon whose motion is told apart."""

    def __post_init__(self) -> None:
        if min(*self.cells, self.steps) < 1:
            given = f"cells {self.cells}, steps {self.steps}"
            raise ConfigError(f"path fusion: {given} given, positive numbers expected, such as (2, 2) and 8.")

    @property
    def tokens(self) -> int:
        """The whole image's, and where there are several cells, each one's."""
        cells = self.cells[0] * self.cells[1]
        return 1 + (cells if cells > 1 else 0)

    @property
    def values(self) -> int:
        """Of each token: (du, dv, dd) of each part of the horizon, (u, v) of the start, and how much moves."""
        return 3 * self.steps + 3

    def hidden_shape(self, motion: MotionExpertConfig) -> tuple[int, int]:
        return self.tokens, self.values

    def build(self, action: ActionExpertConfig, motion: MotionExpertConfig) -> PathTokenizer:
        return PathTokenizer(self, action)

    def check(self, motion: MotionExpertConfig) -> None:
        """
        Raises:
            ConfigError: Cells or steps do not divide the flow.
        """
        grid, horizon = motion.grid, motion.horizon
        if any(side % count for side, count in zip(grid, self.cells, strict=True)):
            raise ConfigError(f"path fusion: cells {self.cells} do not divide the grid {grid}; expected some that do.")
        if horizon % self.steps:
            fitting = [n for n in range(1, horizon + 1) if horizon % n == 0]
            raise ConfigError(
                f"path fusion: steps {self.steps} do not divide the horizon {horizon}; these do: {fitting}."
            )


@dataclass(frozen=True, kw_only=True)
class FlowHead(FusionSettings):
    """No Motion Expert at all: in Stage 2, a head predicts the scene flow from the Action Expert's own context, so that what
    moves is told from the tokens that actions are told from. Acting does not use it."""

    grid: tuple[int, int] = (20, 20)
    """Rows and columns of grid points."""
    horizon: int = 32
    """Flow steps."""
    patch: int = 2
    """Grid points along each side of what one query of the head predicts, over the whole horizon."""
    weight: float = 0.5
    """Of its loss, beside that of the actions."""
    data_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Standard deviation of normalised increments: the unit of its loss, in which it is about 1 before anything is learnt."""

    def __post_init__(self) -> None:
        if min(*self.grid, self.horizon, self.patch) < 1 or any(side % self.patch for side in self.grid):
            given = f"grid {self.grid}, horizon {self.horizon}, patch {self.patch}"
            raise ConfigError(f"flow head: {given} given, positive numbers and a patch that divides the grid expected.")
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"flow head: weight {self.weight} given, a number above 0 expected, such as 0.5.")
        if not min(self.data_std) > 0:
            raise ConfigError(f"flow head: data_std {self.data_std} given, positive numbers expected.")

    needs_prior: ClassVar[bool] = False

    def check(self, motion: MotionExpertConfig) -> None:
        """
        Raises:
            ConfigError: There is a Motion Expert, of whatever kind.
        """
        raise ConfigError("LaMP: a flow head and a Motion Expert are configured; expected one of them: motion=None.")

    @property
    def tokens(self) -> int:
        """Queries of the head."""
        return self.grid[0] * self.grid[1] // self.patch**2

    @property
    def values(self) -> int:
        """What each of them predicts."""
        return 3 * self.horizon * self.patch**2


FusionConfig = GuidanceConfig | AddFusion | ConcatFusion | TokenFusion | PathFusion | FlowHead


LEAST_MOTION = 1e-3
"""What a cell's summed squares of excursions have to be well above to count as motion; a still cell's path tends to zero."""


def pooled_path(flow: Float[Tensor, "b k t 3"], grid: tuple[int, int], config: PathFusion) -> Float[Tensor, "b p c"]:
    """Returns the path of what moves, in the whole image and in each cell of it: (`config.tokens`, `config.values`).

    Points count by the square of how far they get from their start, so that the many that hold still hardly do.

    Args:
        flow: Normalised increments.
        grid: Rows and columns of the points.
    """
    flow = flow.float()
    (rows, columns), (cell_rows, cell_columns) = grid, config.cells
    weight = flow.cumsum(2).abs().amax(2).square().sum(-1, keepdim=True)
    paths = flow.unflatten(2, (config.steps, -1)).sum(3).flatten(2)
    v = torch.arange(rows, device=flow.device).add(0.5).mul(2 / rows).sub(1)[:, None].expand(rows, columns)
    u = torch.arange(columns, device=flow.device).add(0.5).mul(2 / columns).sub(1).expand(rows, columns)
    place = torch.stack([u, v], dim=-1).flatten(0, 1).expand(len(flow), -1, -1)
    weighed = torch.cat([weight * paths, weight * place, weight], dim=-1)
    cells = weighed.reshape(len(flow), cell_rows, rows // cell_rows, cell_columns, columns // cell_columns, -1)
    sums = cells.sum((2, 4)).flatten(1, 2)
    if config.tokens > 1:
        sums = torch.cat([sums.sum(1, keepdim=True), sums], dim=1)
    total = sums[..., -1:] + LEAST_MOTION
    return torch.cat([sums[..., :-1] / total, total.log()], dim=-1)


class MotionPool(nn.Module):
    """Pools z_m by attention with learned queries, one an action or token that it is for."""

    def __init__(self, queries: int, width: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads, dropout=0.0)

    def forward(self, z_m: Float[Tensor, "b m dm"]) -> Float[Tensor, "b h dm"]:
        z_m = self.norm(z_m.to(self.queries.dtype))
        return self.cross_attention(self.queries.expand(len(z_m), -1, -1), z_m)


class MotionAddition(Fusion):
    """The Add ablation."""

    def __init__(self, config: AddFusion, action: ActionExpertConfig) -> None:
        super().__init__()
        self.layers = action.layers
        self.pool = MotionPool(action.chunk, config.motion_width, config.heads)
        self.to_layers = nn.Linear(config.motion_width, action.layers * action.width)

    def guide(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"]) -> Guided:
        """Returns z as it is, and what every layer adds to the action tokens."""
        added = self.to_layers(self.pool(hidden)).unflatten(-1, (self.layers, -1)).transpose(1, 2)
        return Guided(tokens=encoded.tokens, mask=encoded.mask, whole=encoded.whole, motion=AddedMotion(values=added))


class MotionConcatenation(Fusion):
    """The Concat+MLP ablation; the MLP is the Action Expert's, since it reads the noisy actions."""

    def __init__(self, config: ConcatFusion, action: ActionExpertConfig) -> None:
        super().__init__()
        self.pool = MotionPool(action.chunk, config.motion_width, config.heads)

    def guide(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"]) -> Guided:
        """Returns z as it is, and what stands beside the action tokens."""
        joined = JoinedMotion(values=self.pool(hidden))
        return Guided(tokens=encoded.tokens, mask=encoded.mask, whole=encoded.whole, motion=joined)


class MotionTokenizer(Fusion):
    """z_m as context tokens (`TokenFusion`), of the Action Expert's width."""

    skippable = True

    def __init__(self, config: TokenFusion, action: ActionExpertConfig, motion: MotionExpertConfig) -> None:
        super().__init__()
        self.config = config
        width, count = config.motion_width, config.tokens
        self.pool = nn.LayerNorm(width) if count is None else MotionPool(count, width, config.heads)
        self.project = nn.Linear(width, action.width)
        self.positions = nn.Parameter(torch.randn(motion.tokens if count is None else count, action.width) * 0.02)

    def guide(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"]) -> Guided:
        """Returns z as it is, and the tokens that the context has besides."""
        pooled = self.pool(hidden.to(self.project.weight.dtype))
        tokens = MotionTokens(values=self.project(pooled) + self.positions)
        return Guided(tokens=encoded.tokens, mask=encoded.mask, whole=encoded.whole, motion=tokens)


class PathTokenizer(Fusion):
    """A path as context tokens (`PathFusion`), of the Action Expert's width: standardised, then a two-layer MLP."""

    skippable = True
    LARGEST = 5.0
    """Standardised values are clamped to so many standard deviations."""

    def __init__(self, config: PathFusion, action: ActionExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.path_in = nn.Linear(config.values, action.width)
        self.positions = nn.Parameter(torch.randn(config.tokens, action.width) * 0.02)
        self.out = nn.Linear(action.width, action.width)
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(config.tokens, config.values))
        self.register_buffer("scale", torch.ones(config.tokens, config.values))

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called, or what it found was loaded."""
        return bool((self.scale != 1).any())

    def fit(self, mean: Float[Tensor, "p c"], std: Float[Tensor, "p c"]) -> None:
        """Takes over how the values of training samples are distributed; those that do not vary are left as they are."""
        self.centre.copy_(mean)
        self.scale.copy_(std.where(std > LEAST_MOTION, 1.0))

    def blank(self, hidden: Float[Tensor, "b p c"]) -> Float[Tensor, "b p c"]:
        """Returns the mean path, which is zero once it is standardised."""
        return self.centre.expand_as(hidden)

    def guide(self, encoded: Encoded, hidden: Float[Tensor, "b p c"]) -> Guided:
        """Returns z as it is, and the tokens that the context has besides."""
        standard = ((hidden.float() - self.centre) / self.scale).clamp(-self.LARGEST, self.LARGEST)
        inner = self.path_in(standard.to(self.path_in.weight.dtype)) + self.positions
        tokens = MotionTokens(values=self.out(functional.gelu(inner, approximate="tanh")))
        return Guided(tokens=encoded.tokens, mask=encoded.mask, whole=encoded.whole, motion=tokens)


class FlowPredictor(Fusion):
    """`FlowHead`: learned queries, one a patch of the grid, attend to the context; then an MLP, and the patch's increments."""

    def __init__(self, config: FlowHead, action: ActionExpertConfig) -> None:
        super().__init__()
        self.config, width = config, action.width
        self.queries = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.norm_states = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, action.heads, dropout=0.0)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.norm = nn.LayerNorm(width)
        self.flow_out = nn.Linear(width, config.values)
        nn.init.zeros_(self.flow_out.weight)
        nn.init.zeros_(self.flow_out.bias)

    def forward(
        self, states: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b k t 3"]:
        """Returns the scene flow in units of `data_std`."""
        queries = self.queries.expand(len(states), -1, -1)
        x = queries + self.cross_attention(queries, self.norm_states(states), mask)
        predicted = self.flow_out(self.norm(x + self.mlp(self.norm_mlp(x)))).float()
        (rows, columns), patch = self.config.grid, self.config.patch
        patches = predicted.reshape(-1, rows // patch, columns // patch, patch, patch, self.config.horizon, 3)
        return patches.transpose(2, 3).reshape(-1, rows * columns, self.config.horizon, 3)

    def errors(
        self, states: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, motion: Motion
    ) -> Float[Tensor, " b"]:
        """Returns each sample's mean squared error over what supervises, in units of `data_std`; 0 where nothing does."""
        predicted = self(states, mask)
        std = torch.cat([torch.full((1,), std, device=predicted.device) for std in self.config.data_std])
        return velocity_errors(predicted, motion.values / std, motion.mask)[0]


def build_fusion(config: FusionConfig, action: ActionExpertConfig, motion: MotionExpertConfig | None) -> Fusion:
    """Builds the fusion that `config` describes, between experts of these sizes."""
    if isinstance(config, FlowHead):
        return FlowPredictor(config, action)
    if motion is None:
        raise ConfigError(f"{type(config).__name__} hands over what a Motion Expert knows, and there is none.")
    return config.build(action, motion)
