"""Fewer tokens for the policy: each image's tokens averaged over squares, the instruction's to one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.errors import ConfigError, MismatchError
from lamp.types import Encoded


@dataclass(frozen=True, kw_only=True)
class TokenPooling:
    """What guidance and Action Expert read of z: the mean of the tokens of each square of an image, and one mean of all others.

    The Motion Expert reads all of z. Deviation: in the paper so does the Action Expert. With few demonstrations and a small
    model, most of a training step's time goes into context tokens that tell the actions nothing (docs/paper.md).
    """

    grids: tuple[tuple[int, int], ...]
    """Rows and columns of each image's tokens, in the order of z, which begins with them."""
    factor: int = 2
    """Tokens along the side of a square; at the right and the lower edge, those that are left."""

    def __post_init__(self) -> None:
        if self.factor < 1 or not self.grids or any(side < 1 for grid in self.grids for side in grid):
            raise ConfigError(
                f"TokenPooling: grids {self.grids}, factor {self.factor} given; expected at least one grid, and 1 or more "
                "of each number."
            )

    def build(self) -> TokenPool:
        """The module, which has no weights."""
        return TokenPool(self)


class TokenPool(nn.Module):
    """Averages tokens that are real; the mean of none is no token."""

    square: Tensor

    def __init__(self, config: TokenPooling) -> None:
        super().__init__()
        self.config = config
        squares = _squares(config)
        self.register_buffer("square", torch.tensor(squares), persistent=False)
        self.squares = max(squares) + 1

    def forward(self, encoded: Encoded) -> Encoded:
        """Returns a token for each square, then one for all the other tokens, if there are any.

        Raises:
            MismatchError: There are fewer tokens than the images' grids have.
        """
        b, n, width = encoded.tokens.shape
        images = len(self.square)
        if n < images:
            raise MismatchError(
                f"TokenPooling: {n} tokens given, at least {images} expected for images of {self.config.grids} tokens; "
                "`grids` and the backbone's cameras do not belong together."
            )
        count = self.squares + (n > images)
        square = torch.cat([self.square, self.square.new_full((n - images,), self.squares)])
        mask = encoded.mask
        # In float32: a sum of 16-bit values loses what tells neighbours apart.
        with torch.autocast(encoded.tokens.device.type, enabled=False):
            tokens = encoded.tokens.float() * mask[..., None]
            total = tokens.new_zeros(b, count, width).index_add(1, square, tokens)
            real = tokens.new_zeros(b, count).index_add(1, square, mask.float())
            mean: Float[Tensor, "b m d"] = total / real.clamp(min=1)[..., None]
        return replace(encoded, tokens=mean.to(encoded.tokens.dtype), mask=real > 0)


def _squares(config: TokenPooling) -> list[int]:
    """The square that each image token is of, numbered row by row and image after image."""
    squares, factor = [], config.factor
    for rows, columns in config.grids:
        first, across = max(squares, default=-1) + 1, math.ceil(columns / factor)
        squares += [
            first + row // factor * across + column // factor for row in range(rows) for column in range(columns)
        ]
    return squares
