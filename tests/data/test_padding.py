"""Padding a list of sequences, and a batch that is padded already: the same."""

from __future__ import annotations

import pytest
import torch

from lamp.types import LeftPadding, Padding, RightPadding, padded, placed


@pytest.mark.parametrize("length", [5, 6, 9])
@pytest.mark.parametrize("padding", [RightPadding(), LeftPadding()])
def test_a_batch_is_placed_as_its_rows_are(padding: Padding, length: int) -> None:
    real, generator = torch.tensor([5, 1, 3]), torch.Generator().manual_seed(1)
    tokens = torch.randn(3, 6, 4, generator=generator)
    for row, count in enumerate(real.tolist()):
        tokens[row, count:] = torch.nan  # what stands there must not reach anybody
    expected = padded([row[:count] for row, count in zip(tokens, real.tolist(), strict=True)], padding, length)
    found = placed(tokens, real, padding, length)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.mask, expected.mask)
    assert found.whole is None
    half = placed(tokens.bfloat16(), real, padding, length, whole=False)
    assert half.tokens.dtype == torch.bfloat16 and half.whole is False
