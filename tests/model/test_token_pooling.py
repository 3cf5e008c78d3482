"""Pooled context: which tokens are averaged, what hidden and padded ones do, and that the whole policy agrees on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import gaussian
from lamp.model.intervene import InterveningActor
from lamp.model.lamp import LaMP
from lamp.model.prior_interventions import Gate
from lamp.model.token_pooling import TokenPooling
from lamp.recipes import training
from lamp.recipes.small import SMALL_BACKBONE
from lamp.train.train_policy import train_policy
from lamp.types import Encoded


def encoded(values: Sequence[float], real: list[bool] | None = None) -> Encoded:
    tokens = torch.tensor(values, dtype=torch.float32)[None, :, None].expand(1, -1, 3)
    mask = torch.ones(1, len(values), dtype=torch.bool) if real is None else torch.tensor([real])
    return Encoded(tokens=tokens, mask=mask)


def test_squares_of_each_image_and_one_token_of_the_instruction() -> None:
    pool = TokenPooling(grids=((2, 4), (2, 2))).build()
    pooled = pool(encoded([1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 30, 40, 100, 300]))
    assert pooled.tokens[0, :, 0].tolist() == [3.5, 5.5, 25, 200]
    assert pooled.mask.all()


def test_an_uneven_edge_has_smaller_squares() -> None:
    pool = TokenPooling(grids=((3, 3),)).build()
    assert pool(encoded([0, 1, 2, 3, 4, 5, 6, 7, 8])).tokens[0, :, 0].tolist() == [2, 3.5, 6.5, 8]


def test_hidden_tokens_are_no_part_of_a_mean_and_a_square_without_any_is_no_token() -> None:
    pool = TokenPooling(grids=((2, 4),)).build()
    real = [True, False, False, False, False, True, False, False, True, False]
    pooled = pool(encoded([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000], real))
    assert pooled.mask[0].tolist() == [True, False, True]
    assert pooled.tokens[0, :, 0].tolist() == [3.5, 0, 9]


def test_neighbours_in_bfloat16_are_averaged_in_float32() -> None:
    pool = TokenPooling(grids=((2, 2),)).build()
    tokens = torch.tensor([256.0, 2.0, 2.0, 2.0], dtype=torch.bfloat16)[None, :, None].expand(1, 4, 8)
    pooled = pool(Encoded(tokens=tokens, mask=torch.ones(1, 4, dtype=torch.bool)))
    assert pooled.tokens.dtype == torch.bfloat16 and pooled.tokens[0, 0, 0].item() == 65.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"grids \(\), factor 2 given; expected at least one grid"):
        TokenPooling(grids=())
    with pytest.raises(ConfigError, match=r"grids \(\(2, 0\),\), factor 2 given"):
        TokenPooling(grids=((2, 0),))
    with pytest.raises(MismatchError, match=r"3 tokens given, at least 4 expected for images of \(\(2, 2\),\) tokens"):
        TokenPooling(grids=((2, 2),)).build()(encoded([1, 2, 3]))


@pytest.fixture
def pooling_model(model: LaMP) -> LaMP:
    """The same weights, with context tokens of pairs."""
    changed = LaMP(replace(model.config, pooling=TokenPooling(grids=((1, 4),), factor=2))).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def test_guidance_and_actions_read_the_pooled_tokens_and_the_motion_expert_all(pooling_model, model, batch) -> None:
    model.eval()
    noise, action_noise = (gaussian((2, *shape), torch.Generator().manual_seed(1), "cpu") for shape in
                           (model.motion_shape, model.action_shape))  # fmt: skip
    hidden = pooling_model.motion_hidden(batch.encoded, noise)
    torch.testing.assert_close(hidden, model.motion_hidden(batch.encoded, noise))
    by_hand = model.decode(model.guide(pooling_model.policy_tokens(batch.encoded), hidden), batch.state, action_noise)
    acted = pooling_model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=action_noise)
    torch.testing.assert_close(acted, by_hand)
    assert (
        acted - model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=action_noise)
    ).abs().max() > 0
    opened = InterveningActor(pooling_model, Gate(opening=0.0)).act(
        batch.encoded, batch.state, motion_noise=noise, action_noise=action_noise
    )
    without = model.decode(
        replace(model.guide(pooling_model.policy_tokens(batch.encoded), hidden),
                tokens=pooling_model.policy_tokens(batch.encoded).tokens), batch.state, action_noise)  # fmt: skip
    torch.testing.assert_close(opened, without)


def test_without_action_noise_a_policy_starts_in_the_middle(model, batch) -> None:
    model.eval()
    noise = gaussian((2, *model.motion_shape), torch.Generator().manual_seed(1), "cpu")
    still = LaMP(replace(model.config, action_noise_std=0.0)).eval()
    still.load_state_dict(model.state_dict())
    first, second = (
        still.act(batch.encoded, batch.state, motion_noise=noise, action_noise=torch.randn(2, *model.action_shape))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    middle = model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=torch.zeros(2, *model.action_shape))
    torch.testing.assert_close(first, middle)
    with pytest.raises(ConfigError, match=r"action_noise_std 2.0 given, 0 to 1 expected"):
        replace(model.config, action_noise_std=2.0)


def test_pooling_of_other_cameras_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    demo = training("demo").without_motion
    larger = replace(demo, backbone=replace(SMALL_BACKBONE, cameras=(("agentview", 224), ("wrist", 128))))
    message = (
        r"grids is \(\(10, 10\), \(8, 8\)\); expected \(\(14, 14\), \(8, 8\)\), .* agentview at 224 px, wrist at 128 px"
    )
    with pytest.raises(ConfigError, match=message):
        train_policy(larger, tmp_path / "none", tmp_path / "out")
