"""Attention against a naive twin; sinusoids and positions by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lamp.errors import ConfigError
from lamp.model.layers import (
    Block,
    CrossAttention,
    Mlp,
    TimeEmbedding,
    attention,
    check_heads,
    grid_positions,
    merge_heads,
    sinusoid,
    split_heads,
)


def naive_attention(query, key, value, mask):
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                keys = [j for j in range(key.shape[2]) if mask[b, 0, i, j]]
                scores = torch.stack([query[b, h, i] @ key[b, h, j] / math.sqrt(query.shape[-1]) for j in keys])
                weights = scores.exp() / scores.exp().sum()
                out[b, h, i] = sum(w * value[b, h, j] for w, j in zip(weights, keys, strict=True))
    return out


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mask_shape", [(2, 1, 1, 7), (2, 1, 4, 7), (1, 1, 4, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_equals_a_naive_one(mask_shape, dtype, tolerance):
    query, key, value = some(2, 3, 4, 5, seed=1), some(2, 3, 7, 5, seed=2), some(2, 3, 7, 5, seed=3)
    mask = some(*mask_shape, seed=4) < 0.5
    mask[..., 0] = True
    expected = naive_attention(query, key, value, mask.expand(2, 1, 4, 7))
    ours = attention(query.to(dtype), key.to(dtype), value.to(dtype), mask)
    torch.testing.assert_close(ours.float(), expected, atol=tolerance, rtol=tolerance)


def test_both_kernels_have_the_same_gradients():
    parts = [some(2, 3, 6, 8, seed=n).bfloat16() for n in range(3)]
    mask = (some(2, 1, 1, 6, seed=4) < 0.5).logical_or(torch.arange(6) == 0)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [part.to(dtype, copy=True).requires_grad_() for part in parts]
        query, key, value = leaves
        loss = attention(query, key, value, mask).float().square().sum()
        gradients.append([gradient.float() for gradient in torch.autograd.grad(loss, leaves)])
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops(dtype):
    query, key = some(1, 2, 3, 4).to(dtype), some(1, 2, 50, 4).to(dtype)
    value = torch.ones(1, 2, 50, 4, dtype=dtype)
    kept = attention(query, key, value, dropout=0.5)
    assert torch.allclose(attention(query, key, value).float(), torch.ones(1, 2, 3, 4), atol=0.02)
    assert (kept - 1).abs().max() > 0.01


def test_heads_split_and_merge():
    x = some(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


def test_cross_attention_equals_torchs():
    ours, theirs = CrossAttention(12, 3, dropout=0.1).eval(), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, other = some(2, 5, 12), some(2, 8, 12, seed=1)
    torch.testing.assert_close(ours(x, other), theirs(x, other, other)[0])


def test_a_prefix_is_the_same_as_more_tokens():
    block = Block(12, 3)
    x, before = some(2, 4, 12), some(2, 6, 12, seed=1)
    alone = block(x, torch.ones(1, 1, 1, 10, dtype=torch.bool), prefix=block.project(before)[1])
    together = block(torch.cat([x, before], dim=1), torch.ones(1, 1, 1, 10, dtype=torch.bool))
    torch.testing.assert_close(alone, together[:, :4])


@pytest.mark.parametrize("silent", ["out", "mlp.down"])
def test_dropout_of_a_block_acts_in_training_only_and_in_both_halves(silent):
    block, plain = Block(12, 3, dropout=0.5), Block(12, 3)
    half: Any = block.get_submodule(silent)  # at zero, what the other half does is seen alone
    nn.init.zeros_(half.weight)
    nn.init.zeros_(half.bias)
    plain.load_state_dict(block.state_dict())
    x = some(2, 4, 12)
    assert not torch.equal(block(x, None), block(x, None))
    assert torch.equal(block.eval()(x, None), plain(x, None))
    assert torch.equal(plain.train()(x, None), plain.eval()(x, None))


def test_dropout_leaves_the_mean_as_it_is():
    x = some(1, 4, 12)
    mlp, plain = Mlp(12, dropout=0.3), Mlp(12)
    plain.load_state_dict(mlp.state_dict())
    torch.manual_seed(0)
    drawn = mlp(x.expand(20_000, -1, -1))
    assert (drawn.mean(0) - plain(x)[0]).abs().max() < 0.02
    assert abs((drawn == 0).float().mean() - 0.3) < 0.01  # after the MLP; within it nothing is exactly zero then


def test_sinusoid_by_hand():
    angle = 3.0 * 10_000**-0.5
    expected = torch.tensor([math.sin(3), math.sin(angle), math.cos(3), math.cos(angle)])
    torch.testing.assert_close(sinusoid(torch.tensor(3.0), 4), expected)


def test_positions_tell_every_token_apart_and_share_axes():
    positions = grid_positions(3, 4, 5, 32).reshape(3, 4, 5, 32)
    flat = positions.reshape(-1, 32)
    assert (torch.cdist(flat, flat) + torch.eye(60) > 0.1).all()
    assert (positions[..., :8] == positions[:, :1, :1, :8]).all()  # time
    assert (positions[..., 8:20] == positions[:1, :1, :, 8:20]).all()  # column
    assert (positions[..., 20:] == positions[:1, :, :1, 20:]).all()  # row


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="5 heads do not divide width 12"):
        check_heads("this", 12, 5)
    with pytest.raises(ConfigError, match="width 24"):
        grid_positions(1, 2, 2, 24)


def test_whole_time_is_the_integer_part_of_1000_tau():
    plain, whole = TimeEmbedding(8, 16), TimeEmbedding(8, 16, whole=True)
    whole.load_state_dict(plain.state_dict())
    thousandths = torch.arange(1001)
    # Every k / 1000 in float32, and what ten, seven and four solver steps make of it; just before the next, still k.
    assert torch.equal(whole(thousandths / 1000), plain_at(plain, thousandths))
    assert torch.equal(whole(thousandths / 1000 + 9.9e-4), plain_at(plain, thousandths))
    for steps in (10, 7, 4):
        taus = torch.tensor([n / steps for n in range(steps)])
        assert torch.equal(whole(taus), plain_at(plain, torch.tensor([n * 1000 // steps for n in range(steps)])))


def plain_at(embedding, thousandths):
    embedded = sinusoid(thousandths.float(), embedding.channels)
    return embedding.second(torch.nn.functional.silu(embedding.first(embedded)))
