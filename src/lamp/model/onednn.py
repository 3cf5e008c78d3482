"""Kernels for float32 inference on a CPU: oneDNN's matrix products with weights laid out beforehand.

torch multiplies float32 matrices on a CPU through MKL, which does not use the widest vector instructions of every processor:
on an AMD EPYC with AVX-512 and one thread, 1760x384 by 384x1536 ran at 92 GFLOP/s there and at 209 here (docs/benchmarks.md).
These are the operators that torch's own compiler emits for frozen weights, so no compiler is needed to use them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

ROWS_AT_ONCE = 256
"""Queries whose scores are held at a time, so that they stay in the processor's cache."""
LEAST_TOKENS = 512
"""Queries, and keys, from which this attention was faster than torch's: 36 against 59 ms at 1760 of each, 6 heads of 64."""


def available() -> bool:
    """Whether torch was built with these operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def supports(x: Tensor) -> bool:
    """Whether a product with `x` may go through here: float32 on a CPU, and nothing to be learnt from it.

    Not a tensor that only stands for one, as in `lamp.train.memory_estimate`: it has no values to lay out.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and type(x) is Tensor
    return plain and not torch.is_grad_enabled()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none", kind: str = "") -> Any:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], kind)


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
        return self.then(input, "none") if supports(input) else super().forward(input)

    def then(self, x: Float[Tensor, "*b i"], what: str, kind: str = "") -> Float[Tensor, "*b o"]:
        """Multiplies, and applies one of oneDNN's functions to the result while it is in the cache."""
        return _product(x, self.packed, self.bias, what, kind)


class PackedMlp(nn.Module):
    """`lamp.model.layers.Mlp` with GELU inside the first product."""

    def __init__(self, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if not supports(x):
            return self.down(functional.gelu(self.up(x), approximate="tanh"))
        return self.down(self.up.then(x, "gelu", "tanh"))


def is_suitable(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether `attention` is made for these arguments."""
    one_row = mask is None or mask.shape[2] == 1
    large = min(query.shape[2], key.shape[2]) >= LEAST_TOKENS
    return large and one_row and dropout == 0 and supports(query) and available()


def attention(
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
