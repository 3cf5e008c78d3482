"""Weights on another grid or horizon: the same grid is the identity, and coinciding places have the same position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lamp.errors import ConfigError, MismatchError
from lamp.model.motion_expert import MotionExpert, MotionExpertConfig, ReferenceGrid
from lamp.train.resize_checkpoint import carried_over, resized

TAU = torch.tensor([0.3, 0.7])


@pytest.fixture
def trained(config) -> MotionExpertConfig:
    """4x6 points in 2x3 tokens, 8 steps in 4."""
    return config.motion


def positions(config: MotionExpertConfig) -> torch.Tensor:
    return MotionExpert(config).positions.unflatten(0, config.token_grid)


def test_the_same_grid_is_the_identity(trained, model, batch):
    same = resized(trained, grid=trained.grid, horizon=trained.horizon)
    assert same == trained
    explicit = replace(trained, reference=ReferenceGrid(grid=trained.grid, horizon=trained.horizon))
    assert torch.equal(positions(explicit), positions(trained))
    expert = MotionExpert(same)
    expert.load_state_dict(carried_over(model.motion_expert.state_dict(), trained, same))
    values = batch.motion.values
    assert torch.equal(expert(values, TAU, batch.encoded), model.motion_expert(values, TAU, batch.encoded))


def test_a_finer_grid_agrees_where_cells_have_the_same_centre(trained):
    """Three tokens in the place of one: the middle one has the centre of the old."""
    fine = resized(trained, grid=(12, 18))
    assert fine.token_grid == (4, 6, 9)
    old, new = positions(trained), positions(fine)
    torch.testing.assert_close(new[:, 1::3, 1::3], old, atol=1e-5, rtol=0)
    assert (new[:, 0] - new[:, 1]).abs().max() > 1e-2
    # Those beside it lie between the old ones, nearer to their own than to the next.
    own, following = old[:, :1], old[:, 1:]
    between = new[:, 2:3, 1::3]
    assert ((between - own).norm(dim=-1) < (between - following).norm(dim=-1)).all()


def test_a_coarser_grid_agrees_where_cells_have_the_same_centre(trained):
    fine = replace(trained, grid=(12, 18))
    coarse = resized(fine, grid=(4, 6))
    torch.testing.assert_close(positions(coarse), positions(fine)[:, 1::3, 1::3], atol=1e-5, rtol=0)


def test_rows_and_columns_are_not_mixed_up(trained):
    wide = resized(trained, grid=(4, 18))
    torch.testing.assert_close(positions(wide)[:, :, 1::3], positions(trained), atol=1e-5, rtol=0)
    tall = resized(trained, grid=(12, 6))
    torch.testing.assert_close(positions(tall)[:, 1::3], positions(trained), atol=1e-5, rtol=0)


def test_another_horizon_at_the_same_pace_starts_alike(trained):
    old = positions(trained)
    torch.testing.assert_close(positions(resized(trained, horizon=4)), old[:2], atol=0, rtol=0)
    longer = positions(resized(trained, horizon=12))
    torch.testing.assert_close(longer[:4], old, atol=0, rtol=0)
    assert (longer[4:] - old[3]).abs().amax((1, 2, 3)).min() > 1e-2


def test_another_pace_over_the_same_span(trained):
    """Tokens of three reference tokens each, with the centre of the middle one."""
    fine = replace(trained, horizon=24)
    slow = resized(fine, horizon=8, pace=3.0)
    torch.testing.assert_close(positions(slow), positions(fine)[1::3], atol=1e-5, rtol=0)


def test_resizing_twice_counts_from_the_first_grid(trained):
    there = resized(trained, grid=(12, 18), horizon=16, pace=0.5)
    assert there.reference == ReferenceGrid(grid=(4, 6), horizon=8, pace=0.5)
    further = resized(there, grid=(8, 6), horizon=8, pace=2.0)
    assert further.reference == ReferenceGrid(grid=(4, 6), horizon=8)
    assert further == resized(trained, grid=(8, 6))
    assert resized(there, grid=(4, 6), horizon=8, pace=2.0) == trained


def test_carried_weights_say_nearly_the_same_of_a_field_without_detail(trained, batch):
    """Every point moves alike and every token sees the same: a finer grid has more tokens that say nearly the same."""
    torch.manual_seed(0)
    coarse, fine = MotionExpert(trained), resized(trained, grid=(12, 18))
    with torch.no_grad():
        for parameter in coarse.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    placed, unplaced = MotionExpert(fine), MotionExpert(replace(fine, reference=None))
    placed.load_state_dict(carried_over(coarse.state_dict(), trained, fine))
    unplaced.load_state_dict(coarse.state_dict())
    field = torch.randn(2, 1, 8, 3)
    old = coarse(field.expand(-1, 24, -1, -1), TAU, batch.encoded).unflatten(1, (2, 2, 3, 2))
    errors = []
    for expert in (placed, unplaced):
        new = expert(field.expand(-1, 216, -1, -1), TAU, batch.encoded).unflatten(1, (6, 2, 9, 2))
        errors.append((new[:, 1::3, :, 1::3] - old).square().mean() / old.square().mean())
    assert errors[0] < 0.15 and errors[0] < 0.6 * errors[1]


def test_the_layer_of_z_m_may_differ(trained, model):
    wanted = replace(resized(trained, grid=(8, 6)), hidden_layer=0)
    weights = model.motion_expert.state_dict()
    carried = carried_over(weights, trained, wanted)
    assert all(carried[name] is value for name, value in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (8, 6)}, r"reference = \{.*'grid': \[4, 6\].*\} with these weights, None asked for"),
        ({"frames_per_token": 4}, "frames_per_token = 2 with these weights, 4 asked for"),
        ({"width": 64}, "width = 32 with these weights, 64 asked for"),
        ({"reference": ReferenceGrid(grid=(20, 20), horizon=32)}, "reference = None with these weights"),
    ],
)
def test_what_differs_in_more_is_refused(trained, change, message):
    with pytest.raises(MismatchError, match=message):
        carried_over({}, trained, replace(trained, **change))


def test_references_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"grid \(0, 20\), horizon 32, pace 1.0 given, positive"):
        ReferenceGrid(grid=(0, 20), horizon=32)
    with pytest.raises(ConfigError, match="pace 0"):
        ReferenceGrid(grid=(20, 20), horizon=32, pace=0.0)
