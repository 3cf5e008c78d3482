"""What the experts are built from: attention, norms driven by time, the MLP, sinusoids.

For float32 inference on a CPU there are kernels of oneDNN, with weights laid out beforehand. torch multiplies float32 matrices
there through MKL, which does not use the widest vector instructions of every processor: on an AMD EPYC with AVX-512 and one
thread, 1760x384 by 384x1536 ran at 92 GFLOP/s there and at 209 here (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lamp.errors import ConfigError

ROWS_AT_ONCE = 256
"""Queries whose scores are held at a time, so that they stay in the processor's cache."""
LEAST_TOKENS = 512
"""Queries, and keys, from which this attention was faster than torch's: 36 against 59 ms at 1760 of each, 6 heads of 64."""


def attention(
    query: Float[Tensor, "b heads q e"],
    key: Float[Tensor, "b heads n e"],
    value: Float[Tensor, "b heads n e"],
    mask: Bool[Tensor, "#b 1 #q n"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b heads q e"]:
    """softmax(Q K^T / sqrt(e)) V over the keys where `mask` is True.

    Which kernel: torch's fused attention everywhere but in bfloat16 on a CPU, where its backward pass is slow. There, forward
    and backward over 276 tokens (batch 32, 4 heads of 48) took 112 ms fused and 49 ms as plain products on one thread, 61 and
    30 ms on two; in float32, 158 and 177 ms. Large float32 attention on a CPU that nobody learns from goes through oneDNN.
    """
    if not torch.is_grad_enabled() and tiled_attention_suits(query, key, mask, dropout):
        return tiled_attention(query, key, value, mask)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _plain_attention(query, key, value, mask, dropout)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    b, heads, q, e = query.shape
    bias = query.new_zeros(1, 1, 1)
    if mask is not None:
        lowest = torch.finfo(query.dtype).min
        bias = query.new_zeros(mask.shape).masked_fill(~mask, lowest)[:, 0]
        bias = bias.expand(b, -1, -1).repeat_interleave(heads, dim=0)
    bias = bias.expand(b * heads, q, key.shape[2])
    # baddbmm adds the mask while it multiplies: one pass less over the largest tensor of the network.
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=e**-0.5)
    weights = functional.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return torch.bmm(weights, value.flatten(0, 1)).unflatten(0, (b, heads))


def tiled_attention_suits(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether `tiled_attention` is made for these arguments."""
    one_row = mask is None or mask.shape[2] == 1
    large = min(query.shape[2], key.shape[2]) >= LEAST_TOKENS
    return large and one_row and dropout == 0 and onednn_supports(query) and has_onednn()


def tiled_attention(
    query: Float[Tensor, "b heads q e"],
    key: Float[Tensor, "b heads n e"],
    value: Float[Tensor, "b heads n e"],
    mask: Bool[Tensor, "#b 1 1 n"] | None = None,
) -> Float[Tensor, "b heads q e"]:
    """softmax(Q K^T / sqrt(e)) V, some rows of one head at a time; keys that are masked are left out beforehand."""
    b, heads, q, e = query.shape
    out = query.new_empty(b, q, heads, e)
    query = query * e**-0.5
    for sample in range(b):
        real = None if mask is None else mask[min(sample, len(mask) - 1), 0, 0]
        for head in range(heads):
            keys, values = key[sample, head], value[sample, head]
            if real is not None:
                keys, values = keys[real], values[real]
            keys, values = keys.contiguous(), values.mT.contiguous()
            for start in range(0, q, ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                scores = _product(query[sample, head, rows], keys, None)
                out[sample, rows, head] = _product(torch.softmax(scores, -1, out=scores), values, None)
    return out.transpose(1, 2)


def has_onednn() -> bool:
    """Whether torch was built with oneDNN's operators for frozen weights, those that its own compiler emits."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_supports(x: Tensor) -> bool:
    """Whether a product with `x` may go through here: float32 on a CPU, and nothing to be learnt from it.

    Not a tensor that only stands for one, as in `lamp.train.memory_estimate`: it has no values to lay out.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and type(x) is Tensor
    return plain and not torch.is_grad_enabled()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none", kind: str = "") -> Any:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], kind)


def split_heads(x: Float[Tensor, "b n d"], heads: int) -> Float[Tensor, "b heads n e"]:
    """Cuts the width into heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "b heads n e"]) -> Float[Tensor, "b n d"]:
    """Joins the heads again."""
    return x.transpose(1, 2).flatten(2)


def check_heads(name: str, width: int, heads: int) -> None:
    """Raises:
    ConfigError: Where the heads do not divide the width.
    """
    if heads < 1 or width % heads:
        fitting = [n for n in range(1, min(width, 64) + 1) if width % n == 0]
        raise ConfigError(f"{name}: {heads} heads do not divide width {width}; these do: {fitting}.")


def check_dropout(name: str, dropout: float) -> None:
    """Raises:
    ConfigError: Where it is no share that leaves anything.
    """
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"{name}: dropout {dropout} given, a share in [0, 1) expected, such as 0.1.")


class Mlp(nn.Module):
    """Linear to four times the width, GELU (tanh form), linear back; in training, `dropout` after each."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        inner = functional.gelu(self.up(x), approximate="tanh")
        return dropped(self.down(dropped(inner, self.dropout, self.training)), self.dropout, self.training)


class PackedLinear(nn.Linear):
    """A linear layer that shares the parameters of another and keeps a second copy of its weight in oneDNN's own layout.

    The copy does not follow later changes of the weight.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        # Not a buffer: torch can neither save nor move this layout.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return self.then(input, "none") if onednn_supports(input) else super().forward(input)

    def then(self, x: Float[Tensor, "*b i"], what: str, kind: str = "") -> Float[Tensor, "*b o"]:
        """Multiplies, and applies one of oneDNN's functions to the result while it is in the cache."""
        return _product(x, self.packed, self.bias, what, kind)


class PackedMlp(nn.Module):
    """`Mlp` with GELU inside the first product."""

    def __init__(self, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if not onednn_supports(x):
            return self.down(functional.gelu(self.up(x), approximate="tanh"))
        return self.down(self.up.then(x, "gelu", "tanh"))


def dropped(x: Float[Tensor, "*b d"], dropout: float, training: bool) -> Float[Tensor, "*b d"]:
    """`x` with a share of its values at zero and the others larger by as much; in training only."""
    return functional.dropout(x, dropout) if training and dropout else x


class KeyValue(NamedTuple):
    """What a block's tokens offer to queries of the same block."""

    keys: Float[Tensor, "b heads n e"]
    values: Float[Tensor, "b heads n e"]

    def then(self, other: KeyValue) -> KeyValue:
        """Returns these and then those of other tokens."""
        return KeyValue(torch.cat([self.keys, other.keys], dim=2), torch.cat([self.values, other.values], dim=2))


class ExpertBlock(nn.Module):
    """A block of either expert."""

    WITH_WEIGHTS: ClassVar[tuple[str, ...]]
    """Its methods (besides `forward`) that compute with its weights."""
    RECOMPUTED: ClassVar[str]
    """The method that activation checkpointing computes again: all that is large."""


def checkpoint_activations(model: nn.Module, again: Callable[[], AbstractContextManager[object]] | None = None) -> None:
    """Activation checkpointing: the experts' blocks compute their activations again in the backward pass, dropout included.

    Args:
        again: The context of the second time, besides autocast, which comes back by itself.
    """
    options = {} if again is None else {"context_fn": lambda: (nullcontext(), again())}
    for module in model.modules():
        if isinstance(module, ExpertBlock):
            method = getattr(module, module.RECOMPUTED)
            setattr(module, module.RECOMPUTED, partial(checkpoint, method, use_reentrant=False, **options))


class Block(ExpertBlock):
    """A pre-norm transformer block whose attention may reach beyond its own tokens to a prefix computed earlier.

    In training, `dropout` of the attention's weights, of what it finds, and within and after the MLP.
    """

    WITH_WEIGHTS = ("project", "attend")
    RECOMPUTED = "attend"

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, dropout)

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b heads n e"], KeyValue]:
        """Returns the queries, and the keys and values, of `x`."""
        query, key, value = self.query_key_value(self.norm_attention(x)).chunk(3, dim=-1)
        return split_heads(query, self.heads), KeyValue(split_heads(key, self.heads), split_heads(value, self.heads))

    def attend(
        self,
        x: Float[Tensor, "b q d"],
        query: Float[Tensor, "b heads q e"],
        seen: KeyValue,
        mask: Bool[Tensor, "#b 1 #q n"] | None,
    ) -> Float[Tensor, "b q d"]:
        """Adds to `x` what its queries find in `seen`, then the MLP."""
        attended = attention(query, seen.keys, seen.values, mask, self.dropout if self.training else 0.0)
        x = x + dropped(self.out(merge_heads(attended)), self.dropout, self.training)
        return x + self.mlp(self.norm_mlp(x))

    def forward(
        self, x: Float[Tensor, "b q d"], mask: Bool[Tensor, "#b 1 #q n"] | None, prefix: KeyValue | None = None
    ) -> Float[Tensor, "b q d"]:
        """Attends over [x; prefix]; `mask` says which of those keys each token may see."""
        query, own = self.project(x)
        return self.attend(x, query, own if prefix is None else own.then(prefix), mask)


class CrossAttention(nn.Module):
    """CA(Q, K = V): multi-head attention of one sequence over another of the same width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], other: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """`mask` says which of the other sequence's tokens are real; None: all."""
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(other).chunk(2, dim=-1))
        seen = None if mask is None else mask[:, None, None]
        return self.out(merge_heads(attention(query, key, value, seen, self.dropout if self.training else 0.0)))


class Modulation(NamedTuple):
    """How time shifts, scales and gates one stream in one half of a block."""

    shift: Float[Tensor, "b 1 d"]
    scale: Float[Tensor, "b 1 d"]
    gate: Float[Tensor, "b 1 d"]


class AdaLayerNorm(nn.Module):
    """LayerNorm shared by the motion and the condition tokens, each with its own modulation by time (as in CogVideoX).

    Where there are no condition tokens, one stream is enough.
    """

    def __init__(self, width: int, time_width: int, streams: int = 2) -> None:
        super().__init__()
        self.streams = streams
        self.norm = nn.LayerNorm(width)
        self.modulate = nn.Linear(time_width, 3 * streams * width)
        nn.init.zeros_(self.modulate.weight)
        # Shifts and scales start at 0 and gates at 1: a plain pre-norm block, which learnt a little faster than gates at 0.
        self.modulate.bias = nn.Parameter(torch.tensor([0.0, 0.0, 1.0] * streams).repeat_interleave(width))

    def modulations(self, time: Float[Tensor, "b dt"]) -> tuple[Modulation, Modulation]:
        """Returns the modulation of the motion tokens and that of the condition tokens: the same where there is one stream."""
        parts = self.modulate(functional.silu(time))[:, None].chunk(3 * self.streams, dim=-1)
        return Modulation(*parts[:3]), Modulation(*parts[-3:])

    def forward(self, x: Float[Tensor, "b n d"], modulation: Modulation) -> Float[Tensor, "b n d"]:
        return self.norm(x) * (1 + modulation.scale) + modulation.shift


def sinusoid(values: Float[Tensor, "*b"], width: int, max_period: float = 10_000.0) -> Float[Tensor, "*b width"]:
    """[sin(w x) | cos(w x)] with frequencies w from 1 down to nearly 1 / `max_period`, in float32."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


CELLS_PER_UNIT = 1.875
"""Token rows or columns that move a spatial sinusoid by one unit, as in CogVideoX."""


def grid_positions(
    frames: int, rows: int, columns: int, width: int, scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Float[Tensor, "n width"]:
    """Fixed 3-D positions of tokens in (frame, row, column) order: a quarter of the width for time, the rest for space.

    Args:
        frames: Tokens along time.
        rows: Along the image's height.
        columns: Along its width.
        width: Of a token.
        scale: Tokens of another grid for each token of this one, along (time, height, width): positions are in that grid's
            coordinates. Token j is a cell with its centre at j + 1/2, so there it is at (j + 1/2) scale - 1/2; a scale of 1
            gives exactly j.

    Raises:
        ConfigError: The width cannot be shared out.
    """
    if width % 16:
        raise ConfigError(f"3-D sinusoidal positions need a width that 16 divides, width {width} was given.")
    counts = zip((frames, rows, columns), scale, strict=True)
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) * ratio - 0.5 for n, ratio in counts]
    frame, row, column = torch.meshgrid(*axes, indexing="ij")
    space = [sinusoid(axis / CELLS_PER_UNIT, 3 * width // 8) for axis in (column, row)]
    return torch.cat([sinusoid(frame, width // 4), *space], dim=-1).flatten(0, 2)


WHOLE_TIME_SLACK = 1e-3
"""Keeps 1000 tau, where tau is a float32 such as 0.3, from falling below the whole number it stands for."""


class TimeEmbedding(nn.Module):
    """Sinusoid of 1000 tau (or of its integer part, where `whole`) and a two-layer MLP.

    Deviation: the paper does not say how time is embedded; raw tau in [0, 1] would barely move a sinusoid.
    """

    def __init__(self, channels: int, width: int, *, whole: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.whole = whole
        self.first = nn.Linear(channels, width)
        self.second = nn.Linear(width, width)

    def forward(self, tau: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        time = 1000 * tau.float()
        if self.whole:
            time = (time + WHOLE_TIME_SLACK).floor()
        embedded = sinusoid(time, self.channels)
        return self.second(functional.silu(self.first(embedded.to(self.first.weight.dtype))))
