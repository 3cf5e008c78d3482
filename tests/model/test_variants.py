"""Variants of the Motion Expert and t_1: what each leaves out or lets in, and that parameters are counted right."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from lamp.configuration import from_json, to_json
from lamp.errors import MismatchError
from lamp.flow_matching import Preconditioning
from lamp.model.action_expert import ActionExpert, Joint, Prefix
from lamp.model.guidance import Tanh, ZeroOut
from lamp.model.lamp import Departure, LaMP, LaMPConfig
from lamp.model.motion_expert import AdaLNPooled, ImageFlow, MotionExpert, ReferenceGrid
from lamp.model.motion_fusion import AddFusion, ConcatFusion, FlowHead, PathFusion, TokenFusion
from lamp.model.parameter_count import expected_parameters
from lamp.types import Encoded

TAU = torch.tensor([0.3, 0.7])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(config: LaMPConfig) -> Any:
    """A model whose parts are known to be there."""
    model, generator = LaMP(config).eval(), seeded(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def motion(config: Any, **changes) -> LaMPConfig:
    return replace(config, motion=replace(config.motion, **changes))


def variants(config: Any) -> dict[str, LaMPConfig]:
    return {
        "base": config,
        "flow_2d": motion(config, flow=ImageFlow()),
        "adaln_pooled": motion(config, conditioning=AdaLNPooled()),
        "one frame a token": motion(config, frames_per_token=1),
        "another grid": motion(config, reference=ReferenceGrid(grid=(20, 20), horizon=32, pace=0.5)),
        "middle layer": motion(config, hidden_layer=1),
        "add": replace(config, guidance=AddFusion(motion_width=32, heads=2)),
        "concat_mlp": replace(config, guidance=ConcatFusion(motion_width=32, heads=2)),
        "concat_mlp without motion": replace(
            config, motion=None, guidance=ConcatFusion(motion_width=32, heads=2), hidden_at=Departure()
        ),
        "add in stage 1": replace(config, action=None, guidance=AddFusion(motion_width=32, heads=2)),
        "tokens": replace(config, guidance=TokenFusion(motion_width=32, heads=2, tokens=3)),
        "tokens_all": replace(config, guidance=TokenFusion(motion_width=32, heads=2, tokens=None)),
        "path": replace(config, guidance=PathFusion(cells=(2, 3), steps=4)),
        "path without motion": replace(config, motion=None, guidance=PathFusion()),
        "flow_head": replace(config, motion=None, guidance=FlowHead(grid=(4, 6), horizon=8)),
        "tanh": replace(config, guidance=replace(config.guidance, gate=Tanh())),
        "zero_out": replace(config, guidance=replace(config.guidance, gate=ZeroOut())),
        "t_1": replace(config, action=replace(config.action, sees_t_1=True)),
        "joint": replace(config, action=replace(config.action, attention=Joint())),
        "no motion": replace(config, motion=None, guidance=None),
    }


def test_parameters_are_counted_two_ways_for_every_variant(config):
    for name, variant in variants(config).items():
        with torch.device("meta"):
            assert LaMP(variant).parameter_table() == expected_parameters(variant), name


def test_every_variant_survives_json(config):
    for variant in variants(config).values():
        assert from_json(LaMPConfig, json.loads(json.dumps(to_json(variant)))) == variant


# --- two-dimensional flow


def with_depth(values: torch.Tensor, seed: int) -> torch.Tensor:
    depth = torch.randn(values.shape[:-1], generator=seeded(seed)) * 5
    return torch.cat([values[..., :2], depth[..., None]], dim=-1)


@pytest.fixture(params=[None, Preconditioning(data_std=(0.1, 0.2, 0.3))], ids=["plain", "preconditioned"])
def flat(request, config) -> Any:
    return built(motion(config, flow=ImageFlow(), preconditioning=request.param))


def test_depth_reaches_nothing_in_2d(flat, batch):
    noise = torch.randn(2, 24, 8, 3, generator=seeded(1))
    expert = flat.motion_expert
    velocity = expert(noise, TAU, batch.encoded)
    assert (velocity[..., 2] == 0).all() and velocity[..., :2].abs().min() > 0
    assert torch.equal(expert(with_depth(noise, 2), TAU, batch.encoded), velocity)
    assert torch.equal(
        expert.hidden(with_depth(noise, 2), TAU, batch.encoded), expert.hidden(noise, TAU, batch.encoded)
    )
    hidden = flat.motion_hidden(batch.encoded, noise)
    assert torch.equal(flat.motion_hidden(batch.encoded, with_depth(noise, 2)), hidden)
    flow = flat.foresee(batch.encoded, noise, steps=3)
    assert (flow[..., 2] == 0).all()
    assert torch.equal(flat.foresee(batch.encoded, with_depth(noise, 2), steps=3), flow)


def test_depth_does_not_supervise_in_2d(flat, batch):
    loss = flat.motion_loss(batch, seeded(3))
    assert loss.per_axis[2] == 0 and (loss.per_axis[:2] > 0).all()
    deeper = replace(batch.motion, values=with_depth(batch.motion.values, 4))
    assert torch.equal(flat.motion_loss(replace(batch, motion=deeper), seeded(3)).total, loss.total)
    flipped = torch.cat([batch.motion.mask[..., :2], ~batch.motion.mask[..., 2:]], dim=-1)
    masked = replace(batch, motion=replace(batch.motion, mask=flipped))
    assert torch.equal(flat.motion_loss(masked, seeded(3)).total, loss.total)


def test_the_image_axes_learn_as_they_do_in_3d(config, batch):
    """Where the input carries no depth, 2-D and 3-D experts of the same weights say the same of (du, dv)."""
    flat: Any = LaMP(motion(config, flow=ImageFlow()))
    deep = built(config)
    flat.load_state_dict(deep.state_dict())
    values = batch.motion.values * torch.tensor([1.0, 1.0, 0.0])
    ours, theirs = (model.motion_expert(values, TAU, batch.encoded) for model in (flat, deep))
    torch.testing.assert_close(ours[..., :2], theirs[..., :2])
    assert theirs[..., 2].abs().max() > 0
    assert (ours - deep.motion_expert(with_depth(values, 2), TAU, batch.encoded))[..., :2].abs().max() > 1e-3


# --- pooled conditioning


@pytest.fixture
def pooled(config) -> Any:
    return built(motion(config, conditioning=AdaLNPooled()))


def test_pooled_conditioning_sees_the_mean_of_the_real_tokens_and_nothing_else(
    pooled, model, batch, with_other_padding
):
    expert, values, encoded = pooled.motion_expert, batch.motion.values, batch.encoded
    velocity = expert(values, TAU, encoded)
    torch.testing.assert_close(expert(values, TAU, with_other_padding(encoded)), velocity)
    means = torch.stack([encoded.tokens[b][encoded.mask[b]].mean(0) for b in range(2)])
    alone = Encoded(tokens=means[:, None], mask=torch.ones(2, 1, dtype=torch.bool))
    torch.testing.assert_close(expert(values, TAU, alone), velocity, atol=1e-5, rtol=1e-4)
    joint = model.motion_expert
    assert (joint(values, TAU, alone) - joint(values, TAU, encoded)).abs().max() > 1e-3
    other = replace(encoded, tokens=encoded.tokens.flip(-1))
    assert (expert(values, TAU, other) - velocity).abs().max() > 1e-3
    assert (expert(values, TAU + 0.1, encoded) - velocity).abs().max() > 1e-3


def test_pooled_conditioning_attends_among_motion_tokens_alone(pooled, batch):
    lengths = []
    block = pooled.motion_expert.blocks[0]
    block.query_key_value.register_forward_hook(lambda _module, args, _out: lengths.append(args[0].shape[1]))
    pooled.motion_hidden(batch.encoded, torch.zeros(2, 24, 8, 3))
    assert lengths == [24, 24]


def test_pooled_conditioning_stands_a_sample_without_tokens(pooled, batch):
    nothing = replace(batch.encoded, mask=torch.zeros_like(batch.encoded.mask))
    assert pooled.motion_expert(batch.motion.values, TAU, nothing).isfinite().all()


@pytest.mark.parametrize("conditioning", ["joint", "pooled"])
def test_every_parameter_of_the_motion_expert_learns(request, config, batch, conditioning):
    model = request.getfixturevalue("pooled") if conditioning == "pooled" else built(config)
    model.motion_loss(batch, seeded()).total.backward()
    idle = [name for name, p in model.motion_expert.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert idle == []


# --- t_1


def test_t_1_is_the_solver_s_first_time_and_matters(config, batch):
    model = built(replace(config, action=replace(config.action, sees_t_1=True)))
    hidden = torch.randn(2, 24, 32, generator=seeded(6))
    guided = model.guide(batch.encoded, hidden)
    torch.testing.assert_close(guided.t_1, torch.full((2,), 0.1))
    quarter = LaMP(replace(model.config, solver_steps=4))
    torch.testing.assert_close(quarter.guide(batch.encoded, hidden).t_1, torch.full((2,), 0.25))
    inputs = torch.randn(2, 3, 5, 7, generator=seeded(2)), torch.rand(2, 3, generator=seeded(4)), batch.state
    expert = model.action_expert
    velocity = expert(*inputs, expert.context(guided))
    later = expert(*inputs, expert.context(replace(guided, t_1=torch.full((2,), 0.5))))
    assert (later - velocity).abs().max() > 1e-3
    with pytest.raises(MismatchError, match="sees_t_1 is set and no t_1 was given"):
        expert.context(replace(guided, t_1=None))


@pytest.mark.parametrize("attention", [Joint(), Prefix()])
def test_an_expert_whose_weights_of_t_1_are_zero_is_the_one_that_does_not_see_it(config, model, batch, attention):
    plain = ActionExpert(replace(config.action, attention=attention))
    plain.load_state_dict(model.action_expert.state_dict())
    seeing = ActionExpert(replace(config.action, attention=attention, sees_t_1=True))
    weights = dict(plain.state_dict())
    inputs = weights["action_in.weight"]
    weights["action_in.weight"] = torch.cat([inputs, torch.zeros(48, 32)], dim=1)
    seeing.load_state_dict(weights)
    guided = model.guide(batch.encoded, torch.zeros(2, 24, 32))
    inputs = torch.randn(2, 3, 5, 7, generator=seeded(2)), torch.rand(2, 3, generator=seeded(4)), batch.state
    seen = seeing.context(replace(guided, t_1=torch.full((2,), 0.1)))
    torch.testing.assert_close(seeing(*inputs, seen), plain(*inputs, plain.context(guided)))


def test_an_expert_without_t_1_is_given_none(model, batch):
    assert model.guide(batch.encoded, torch.zeros(2, 24, 32)).t_1 is None


def test_the_default_expert_has_the_weights_it_always_had(config):
    names = {name.split(".")[0] for name in MotionExpert(config.motion).state_dict()}
    assert "pooled" not in names and "positions" not in names
    assert not any(name.startswith("join") for name in ActionExpert(config.action).state_dict())
