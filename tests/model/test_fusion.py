"""The ablations' fusions: each against a twin that is written out, and what every fusion has to keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import gaussian
from lamp.model.action_expert import ActionExpert, Joint, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import Departure, LaMP, LaMPConfig
from lamp.model.motion_fusion import AddFusion, ConcatFusion, FlowHead, MotionPool, PathFusion, TokenFusion, pooled_path
from lamp.types import AddedMotion, Encoded, Guided, JoinedMotion, MotionTokens

DRAWS = 3
ATTENTIONS = [Joint(), Prefix(), Prefix(context_layers=1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["gated", "add", "concat_mlp", "tokens", "tokens_all", "path"])
def fused(request, config) -> LaMPConfig:
    small = {"motion_width": 32, "heads": 4}
    kinds = {
        "gated": config.guidance,
        "add": AddFusion(**small),
        "concat_mlp": ConcatFusion(**small),
        "tokens": TokenFusion(**small, tokens=3),
        "tokens_all": TokenFusion(**small, tokens=None),
        "path": PathFusion(cells=(2, 3), steps=4),
    }
    return replace(config, guidance=kinds[request.param])


def built(config: LaMPConfig) -> Any:
    """A model whose parts are known to be there."""
    model, generator = LaMP(config).eval(), seeded(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def handed_over(config: LaMPConfig) -> torch.Tensor:
    """Something of the shape of what the Motion Expert hands over."""
    return torch.randn(2, *(config.hidden_shape or ()), generator=seeded(6))


@pytest.fixture
def inputs(batch):
    actions, tau = torch.randn(2, DRAWS, 5, 7, generator=seeded(2)), torch.rand(2, DRAWS, generator=seeded(4))
    return actions, tau, batch.state


def naive(expert: ActionExpert, guided: Guided, actions, tau, state) -> torch.Tensor:
    """One sample and one draw at a time, without any cache, with the motion written out."""
    velocity, attention = torch.zeros_like(actions), expert.config.attention
    joint = isinstance(attention, Joint)
    depth = len(expert.blocks) if joint or attention.context_layers is None else attention.context_layers
    for b in range(actions.shape[0]):
        real = guided.mask[b]
        for r in range(actions.shape[1]):
            c = (expert.context_in(guided.tokens[b]) + expert.positions[5 : 5 + len(real)])[real][None]
            if isinstance(guided.motion, MotionTokens):
                c = torch.cat([guided.motion.values[b : b + 1], c], dim=1)
            x = expert.embed(actions[b : b + 1, r : r + 1], expert._times(tau[b : b + 1, r : r + 1]), state[b : b + 1])[
                0
            ]
            if isinstance(guided.motion, JoinedMotion):
                assert expert.join is not None
                rows = []
                for action in range(5):
                    both = torch.cat([x[0, action], guided.motion.values[b, action]])
                    rows.append(expert.join.out(functional.gelu(expert.join.mix(both), approximate="tanh")))
                x = torch.stack(rows)[None]
            for index, block in enumerate(expert.blocks):
                if isinstance(guided.motion, AddedMotion):
                    x = x + guided.motion.values[b, index]
                both = torch.cat([x, c], dim=1)
                everything = block(both, torch.ones(1, 1, 1, both.shape[1], dtype=torch.bool))
                x = everything[:, :5]
                if joint:
                    c = everything[:, 5:]
                elif index < depth:
                    c = block(c, torch.ones(1, 1, 1, c.shape[1], dtype=torch.bool))
            velocity[b, r] = expert.velocity_out(expert.norm(x))[0]
    return velocity


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_the_action_expert_equals_a_twin_that_writes_the_motion_out(fused, batch, inputs, attention):
    model = built(replace(fused, action=replace(fused.action, attention=attention)))
    assert model.action_expert
    guided = model.guide(batch.encoded, handed_over(fused))
    ours = model.action_expert(*inputs, model.action_expert.context(guided))
    torch.testing.assert_close(ours, naive(model.action_expert, guided, *inputs), atol=1e-5, rtol=1e-4)


def test_the_pool_is_attention_with_a_query_for_each_action():
    pool, z_m = MotionPool(5, width=32, heads=4), torch.randn(2, 24, 32, generator=seeded(6)) * 30
    nn.init.normal_(pool.queries, generator=seeded(1))
    twin, norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([pool.cross_attention.query.weight, pool.cross_attention.key_value.weight]))
        twin.in_proj_bias.copy_(torch.cat([pool.cross_attention.query.bias, pool.cross_attention.key_value.bias]))
    twin.out_proj.load_state_dict(pool.cross_attention.out.state_dict())
    queries = torch.stack([pool.queries, pool.queries])
    expected = twin(queries, norm(z_m), norm(z_m))[0]
    torch.testing.assert_close(pool(z_m), expected)
    shuffled = z_m[:, torch.randperm(24, generator=seeded(2))]
    torch.testing.assert_close(pool(shuffled), expected, atol=1e-5, rtol=1e-4)


def test_add_has_one_linear_map_for_each_layer(config, batch):
    model = built(replace(config, guidance=AddFusion(motion_width=32, heads=4)))
    z_m = torch.randn(2, 24, 32, generator=seeded(6))
    guided = model.guide(batch.encoded, z_m)
    assert torch.equal(guided.tokens, batch.encoded.tokens)
    assert isinstance(guided.motion, AddedMotion)
    assert guided.motion.values.shape == (2, 3, 5, 48)
    pooled, maps = model.guidance.pool(z_m), model.guidance.to_layers
    for layer in range(3):
        rows = slice(48 * layer, 48 * (layer + 1))
        expected = pooled @ maps.weight[rows].T + maps.bias[rows]
        torch.testing.assert_close(guided.motion.values[:, layer], expected)


def test_training_and_inference_fuse_alike(fused, batch):
    """Given the noise, Stage 2 and `act` condition on the same, with z_m computed on the way or cached."""
    model, seen = built(fused), []
    guide = model.guide
    model.guide = lambda *args, **more: seen.append(guide(*args, **more)) or seen[-1]
    noise = gaussian((2, *model.motion_shape), seeded(7), "cpu")
    plain = model.action_loss(batch, seeded(7)).total
    generator = seeded(7)
    gaussian((2, *model.motion_shape), generator, "cpu")
    hidden = model.motion_hidden(batch.encoded, noise)
    cached = model.action_loss(replace(batch, motion_hidden=hidden), generator).total
    torch.testing.assert_close(cached, plain)
    model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=torch.zeros(2, 5, 7))
    assert len(seen) == 3
    for other in seen[1:]:
        torch.testing.assert_close(other.tokens, seen[0].tokens)
        if seen[0].motion is not None:
            torch.testing.assert_close(other.motion.values, seen[0].motion.values)


def test_the_motion_prior_matters_and_padding_does_not(fused, batch, with_other_padding):
    model = built(fused)
    noise = gaussian((2, *model.motion_shape), seeded(1), "cpu")
    runs = [(batch.encoded, noise), (with_other_padding(batch.encoded), noise), (batch.encoded, noise.flip(0))]
    start = torch.randn(2, 5, 7, generator=seeded(2))
    first, padded, other = (model.act(z, batch.state, motion_noise=m, action_noise=start) for z, m in runs)
    torch.testing.assert_close(first, padded)
    assert (first - other).abs().max() > 1e-4


def test_a_sample_that_has_not_seen_the_prior_has_none_of_it(fused, batch):
    model = built(fused)
    hidden = handed_over(fused)
    seen = torch.tensor([True, False])
    whole, partly = model.guide(batch.encoded, hidden), model.guide(batch.encoded, hidden, seen)
    assert torch.equal(partly.tokens[0], whole.tokens[0])
    assert torch.equal(partly.tokens[1], batch.encoded.tokens[1])
    if whole.motion is None:
        assert not torch.equal(whole.tokens[1], batch.encoded.tokens[1])
        return
    assert type(partly.motion) is type(whole.motion)
    assert torch.equal(partly.motion.values[0], whole.motion.values[0])
    assert (partly.motion.values[1] == 0).all() and whole.motion.values[1].abs().max() > 0


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("count", [3, None], ids=["pooled", "all"])
def test_motion_tokens_stand_beside_z(config, batch, attention, count):
    fusion = TokenFusion(motion_width=32, heads=4, tokens=count)
    model = built(replace(config, guidance=fusion, action=replace(config.action, attention=attention)))
    expert, z_m = model.action_expert, torch.randn(2, 24, 32, generator=seeded(6))
    guided = model.guide(batch.encoded, z_m)
    assert guided.tokens is batch.encoded.tokens and guided.mask is batch.encoded.mask
    module = model.guidance
    pooled = module.pool(z_m) if count else functional.layer_norm(z_m, (32,), module.pool.weight, module.pool.bias)
    expected = pooled @ module.project.weight.T + module.project.bias + module.positions
    torch.testing.assert_close(guided.motion.values, expected)
    assert guided.motion.values.shape == (2, count or 24, 48)

    start = torch.randn(2, 5, 7, generator=seeded(2))
    without = model.decode(Guided(tokens=batch.encoded.tokens, mask=batch.encoded.mask), batch.state, start)
    assert (model.decode(guided, batch.state, start) - without).abs().max() > 1e-4
    # Withheld, they are not there at all: the same actions as where there is no prior, and no trace of its values.
    none = model.decode(model.guide(batch.encoded, z_m, torch.zeros(2).bool()), batch.state, start)
    torch.testing.assert_close(none, without)
    half = model.decode(model.guide(batch.encoded, z_m, torch.tensor([False, True])), batch.state, start)
    torch.testing.assert_close(half[0], without[0])
    torch.testing.assert_close(half[1], model.decode(guided, batch.state, start)[1])

    # Without padding there is no mask, and the actions are those with one.
    z = batch.encoded.tokens
    whole = Encoded(tokens=z, mask=torch.ones(2, 11, dtype=torch.bool), whole=True)
    assert expert.context(model.guide(whole, z_m)).mask is None
    asked = expert.context(model.guide(replace(whole, whole=None), z_m))
    assert asked.mask.shape == (2, 11 + (count or 24)) and asked.mask.all()
    found = [model.decode(model.guide(one, z_m), batch.state, start) for one in (whole, replace(whole, whole=None))]
    torch.testing.assert_close(*found)


def test_motion_tokens_need_no_position_of_the_action_experts(config, batch):
    """More of z_m's tokens than the Action Expert has room for beside z."""
    crowded = replace(config.action, positions=16)
    model = built(replace(config, guidance=TokenFusion(motion_width=32, heads=4, tokens=None), action=crowded))
    noise = gaussian((2, *model.motion_shape), seeded(1), "cpu")
    actions = model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=torch.zeros(2, 5, 7))
    assert actions.isfinite().all()


@pytest.mark.parametrize("fusion", [TokenFusion(motion_width=32, heads=4), PathFusion()], ids=["tokens", "path"])
def test_a_step_that_sees_no_prior_computes_none(config, batch, fusion):
    config = replace(config, guidance=fusion)
    model = built(config)
    model.motion_expert.register_forward_pre_hook(lambda *_: pytest.fail("the Motion Expert was asked"))
    hidden = replace(batch, motion_hidden=handed_over(config))
    unseen = torch.zeros(2, dtype=torch.bool)
    for seen in (batch, hidden):
        loss = model.action_loss(replace(seen, prior_seen=unseen), seeded(7)).total
        loss.backward()
        assert all(p.grad is None for p in model.guidance.parameters())
    computed = model.action_loss(replace(hidden, prior_seen=unseen, guided=True), seeded(7)).total
    torch.testing.assert_close(computed, loss)


def moved(
    points: dict[int, tuple[float, float, float]], grid: tuple[int, int] = (4, 6), horizon: int = 8
) -> torch.Tensor:
    """Scene flow in which these points move by so much in each step, and all others hold still."""
    flow = torch.zeros(1, grid[0] * grid[1], horizon, 3)
    for point, step in points.items():
        flow[0, point] = torch.tensor(step)
    return flow


def test_a_path_says_what_moves_where_and_how_far():
    config = PathFusion(cells=(2, 2), steps=4)
    # Point 2 is in the first row and third of six columns, point 22 in the last row and second to last column.
    path = pooled_path(moved({2: (0.3, 0.0, 0.0), 22: (0.0, -0.6, 0.6)}), (4, 6), config)[0]
    assert path.shape == (5, 15) == (config.tokens, config.values)
    whole, upper_left, upper_right, lower_left, lower_right = path
    each = torch.tensor([0.6, 0.0, 0.0])  # two of the eight steps
    torch.testing.assert_close(upper_left[:12], each.repeat(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(upper_left[12:14], torch.tensor([-1 / 6, -0.75]), atol=1e-3, rtol=0)
    torch.testing.assert_close(lower_right[:12], torch.tensor([0.0, -1.2, 1.2]).repeat(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(lower_right[12:14], torch.tensor([0.5, 0.75]), atol=1e-3, rtol=0)
    # Excursions of 2.4, and of 4.8 along two axes: the second counts eight times as much.
    torch.testing.assert_close(upper_left[14].exp(), torch.tensor(2.4**2 + 1e-3))
    torch.testing.assert_close(lower_right[14].exp() - 1e-3, 8 * torch.tensor(2.4**2))
    mean = (upper_left[:14] + 8 * lower_right[:14]) / 9
    torch.testing.assert_close(whole[:14], mean, atol=1e-3, rtol=0)
    for still in (upper_right, lower_left):
        torch.testing.assert_close(still, torch.cat([torch.zeros(14), torch.tensor([1e-3]).log()]))
    alone = pooled_path(moved({2: (0.3, 0.0, 0.0)}), (4, 6), PathFusion(cells=(1, 1), steps=8))
    assert alone.shape == (1, 1, 27)


def test_a_path_is_one_evaluation_from_the_noise(config, batch):
    fusion = PathFusion(cells=(2, 3), steps=4)
    model = built(replace(config, guidance=fusion))
    asked = []
    model.motion_expert.register_forward_pre_hook(lambda _, given: asked.append(given[1]))
    noise = torch.randn(2, 24, 8, 3, generator=seeded(1))
    expected = pooled_path(noise + model.motion_expert(noise, 0.0, batch.encoded), (4, 6), fusion)
    asked.clear()
    torch.testing.assert_close(model.motion_hidden(batch.encoded, noise), expected)
    assert asked == [0.0] and model.config.evaluations["motion"] == 1
    assert model.config.hidden_shape == expected.shape[1:] == (7, 15)
    true = batch.motion.values
    torch.testing.assert_close(model.oracle_hidden(batch.encoded, true), pooled_path(true, (4, 6), fusion))
    # Further along, the rest of the way is one step; at the end there is none.
    last = pooled_path(model.foresee(batch.encoded, noise), (4, 6), fusion)
    torch.testing.assert_close(model.motion_hidden(batch.encoded, noise, taken=10), last)
    assert replace(config, guidance=fusion, hidden_at=Departure()).evaluations["motion"] == 1


def test_a_path_is_standardised_by_what_training_samples_have(config, batch):
    model = built(replace(config, guidance=PathFusion(cells=(2, 3), steps=4)))
    guidance, path = model.guidance, torch.randn(2, 7, 15, generator=seeded(6))
    assert not guidance.fitted
    before = model.guide(batch.encoded, path).motion.values
    mean, std = torch.randn(7, 15, generator=seeded(1)), torch.rand(7, 15, generator=seeded(2)) + 0.1
    std[0, 0] = 0.0  # the depth of a 2-D flow
    guidance.fit(mean, std)
    assert guidance.fitted and guidance.scale[0, 0] == 1.0
    raw = path * guidance.scale + mean
    torch.testing.assert_close(model.guide(batch.encoded, raw).motion.values, before)
    far = model.guide(batch.encoded, raw + 1e6 * std).motion.values
    assert torch.equal(far, model.guide(batch.encoded, raw + 2e6 * std).motion.values)


def test_noise_on_what_is_handed_over_is_of_the_size_asked_for(fused, batch):
    model, seen = built(fused), []
    guide = model.guide
    model.guide = lambda *args, **more: seen.append(args[1]) or guide(*args, **more)
    hidden = handed_over(fused)
    many = replace(batch, motion_hidden=hidden)
    scale = torch.rand(hidden.shape[-1], generator=seeded(8)) + 0.5
    exact = model.action_loss(many, seeded(7)).total
    for seed in range(1 + 1200 // hidden[..., 0].numel()):
        model.action_loss(many, seeded(seed), 1, hidden_noise=scale)
    assert torch.equal(seen[0], hidden)
    added = torch.stack([one - hidden for one in seen[1:]]).flatten(0, 2)
    torch.testing.assert_close(added.std(0), scale, rtol=0.1, atol=0)
    assert torch.equal(model.action_loss(many, seeded(7)).total, exact)


def test_every_parameter_learns_but_the_frozen_and_the_unused(fused, batch):
    model = built(fused)
    model.action_loss(batch, seeded()).total.backward()
    assert model.guidance and model.action_expert and model.motion_expert
    assert all(p.grad is None for p in model.motion_expert.parameters())
    for part in (model.guidance, model.action_expert):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def with_flow_head(config: Any, attention: Any = ATTENTIONS[1], **changes: Any) -> Any:
    head = FlowHead(grid=(4, 6), horizon=8, data_std=(0.5, 1.0, 2.0), **changes)
    return built(replace(config, motion=None, guidance=head, action=replace(config.action, attention=attention)))


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_a_flow_head_learns_from_the_tokens_that_actions_are_told_from(config, batch, attention, with_other_padding):
    model = with_flow_head(config, attention, weight=0.3).train()
    assert model.config.evaluations == {"motion": 0, "guidance": 0, "action": 10} and model.config.hidden_shape is None
    loss = model.action_loss(batch, seeded(7))
    predicted = model.guidance(
        model.action_expert.states(model.action_expert.context(model.guide(batch.encoded, None))), batch.encoded.mask
    )
    errors = []
    for b in range(2):
        error = (predicted[b] - batch.motion.values[b] / torch.tensor([0.5, 1.0, 2.0])).square()
        errors.append(error[batch.motion.mask[b]].mean())
    torch.testing.assert_close(loss.flow, torch.stack(errors).mean())
    other = model.action_loss(replace(batch, encoded=with_other_padding(batch.encoded)), seeded(7))
    torch.testing.assert_close(other.flow, loss.flow)

    loss.total.backward()
    for part in (model.guidance, model.action_expert):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
    through = torch.autograd.grad(model.action_loss(batch, seeded(7)).total, model.action_expert.context_in.weight)[0]
    alone = model.eval().action_loss(batch, seeded(7))
    torch.testing.assert_close(alone.flow, loss.flow)
    torch.testing.assert_close(loss.total, alone.total + 0.3 * loss.flow)
    apart = torch.autograd.grad(alone.total, model.action_expert.context_in.weight)[0]
    assert (through - apart).abs().max() > 1e-6, "the flow teaches the context"
    assert model.action_loss(replace(batch, motion=None), seeded(7)).flow is None
    with pytest.raises(MismatchError, match="scene flow of the batch, which the flow head learns, is missing"):
        model.train().action_loss(replace(batch, motion=None), seeded(7))


def test_a_flow_head_acts_as_the_policy_without_it(config, batch):
    model = with_flow_head(config)
    plain: Any = LaMP(replace(model.config, guidance=None)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("guidance.")})
    model.guidance.register_forward_pre_hook(lambda *_: pytest.fail("the head was asked"))
    start = torch.randn(2, 5, 7, generator=seeded(2))
    ours, theirs = (m.act(batch.encoded, batch.state, motion_noise=None, action_noise=start) for m in (model, plain))
    assert torch.equal(ours, theirs)


def test_parts_of_a_batch_weigh_alike_in_both_losses(config, batch):
    """The mean over the parts, each by its samples that have actions, is that over the whole."""
    model = with_flow_head(config).train()
    none = replace(batch, action_mask=torch.zeros_like(batch.action_mask))
    assert model.action_loss(none, seeded(7)).flow == 0
    unknown = batch.motion.mask.clone()
    unknown[0] = False
    partly = replace(batch, motion=replace(batch.motion, mask=unknown))
    parts = [model.action_loss(partly.rows(row, 1), seeded(7)).flow for row in range(2)]
    assert parts[0] == 0 and parts[1] > 0
    torch.testing.assert_close(model.action_loss(partly, seeded(7)).flow, torch.stack(parts).mean())


def test_a_flow_head_predicts_each_patch_where_it_is(config, batch):
    model = with_flow_head(config)
    head = model.guidance
    with torch.no_grad():
        head.flow_out.weight.zero_()
        head.flow_out.bias.copy_(torch.arange(96.0))
    flow = head(torch.randn(2, 11, 48))
    # Of a patch: (row, column, flow step, axis); every second row and column begins a new one.
    expected = torch.arange(96.0).reshape(2, 2, 8, 3)
    torch.testing.assert_close(flow[1].reshape(4, 6, 8, 3), expected.repeat(2, 3, 1, 1))


def test_only_eq_4_has_a_gate(fused):
    model = LaMP(fused)
    assert (model.gate is None) == (not isinstance(fused.guidance, GuidanceConfig))


def test_bfloat16_fuses_too(fused, batch):
    model = built(fused)
    noise, start = torch.zeros(2, *(model.motion_shape or ())), torch.zeros(2, 5, 7)
    exact = model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=start)
    assert functional.cosine_similarity(exact.flatten(1), rough.flatten(1)).min() > 0.99


def test_motion_at_the_wrong_place_is_refused(config, batch):
    concat = LaMP(replace(config, guidance=ConcatFusion(motion_width=32, heads=4)))
    assert concat.action_expert
    guided = Guided(tokens=batch.encoded.tokens, mask=batch.encoded.mask)
    with pytest.raises(MismatchError, match="motion of type NoneType given, JoinedMotion expected"):
        concat.action_expert.context(guided)
    with pytest.raises(
        MismatchError, match="motion of type JoinedMotion given, none, AddedMotion or MotionTokens expected"
    ):
        joined = replace(guided, motion=JoinedMotion(values=torch.zeros(2, 5, 32)))
        ActionExpert(config.action).context(joined)
    with pytest.raises(ConfigError, match="5 heads do not divide width 32"):
        AddFusion(motion_width=32, heads=5)
    with pytest.raises(ConfigError, match="token fusion: 0 tokens given, at least 1 expected"):
        TokenFusion(motion_width=32, heads=4, tokens=0)
    with pytest.raises(ConfigError, match=r"path fusion: cells \(0, 2\), steps 8 given, positive numbers expected"):
        PathFusion(cells=(0, 2))
    with pytest.raises(ConfigError, match=r"path fusion: cells \(3, 3\) do not divide the grid \(4, 6\)"):
        replace(config, guidance=PathFusion(cells=(3, 3)))
    with pytest.raises(
        ConfigError, match=r"path fusion: steps 3 do not divide the horizon 8; these do: \[1, 2, 4, 8\]"
    ):
        replace(config, guidance=PathFusion(steps=3))
    with pytest.raises(ConfigError, match="a flow head and a Motion Expert are configured; expected one of them"):
        replace(config, guidance=FlowHead(grid=(4, 6), horizon=8))
    with pytest.raises(
        ConfigError, match=r"flow head: grid \(5, 6\), horizon 8, patch 2 given, positive numbers and a"
    ):
        FlowHead(grid=(5, 6), horizon=8)
    with pytest.raises(ConfigError, match=r"flow head: weight 0\.0 given, a number above 0 expected"):
        FlowHead(weight=0.0)
    with pytest.raises(ConfigError, match="guidance expects motion_width 31"):
        replace(config, guidance=ConcatFusion(motion_width=31, heads=1))
