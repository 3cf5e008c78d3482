"""The Action Expert: what Joint and Prefix let each token see, and that a prefix computed once is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lamp.errors import ConfigError, MismatchError
from lamp.model.action_expert import ActionExpert, ActionExpertConfig, Joint, Prefix, PrefixContext
from lamp.model.layers import Block, checkpoint_activations
from lamp.types import Guided

DRAWS = 3


ATTENTIONS = [Joint(), Prefix(), Prefix(context_layers=1), Prefix(context_layers=0)]


@pytest.fixture(params=ATTENTIONS, ids=str)
def expert(request, config, model) -> ActionExpert:
    expert = ActionExpert(replace(config.action, attention=request.param))
    expert.load_state_dict(model.action_expert.state_dict())
    return expert


@pytest.fixture
def guided(batch) -> Guided:
    return Guided(tokens=batch.encoded.tokens, mask=batch.encoded.mask)


@pytest.fixture
def inputs(batch):
    generator = torch.Generator().manual_seed(2)
    actions, tau = torch.randn(2, DRAWS, 5, 7, generator=generator), torch.rand(2, DRAWS, generator=generator)
    return actions, tau, batch.state


def naive_prefix(expert: ActionExpert, actions, tau, state, guided) -> torch.Tensor:
    """One sample and one draw at a time, without any cache: every layer recomputed over the tokens it may see."""
    assert isinstance(expert.config.attention, Prefix)
    depth = expert.config.attention.context_layers
    depth = len(expert.blocks) if depth is None else depth
    velocity = torch.zeros_like(actions)
    for b in range(actions.shape[0]):
        real = guided.mask[b]
        for r in range(actions.shape[1]):
            c = (expert.context_in(guided.tokens[b]) + expert.positions[5 : 5 + len(real)])[real][None]
            x = expert.embed(actions[b : b + 1, r : r + 1], expert._times(tau[b : b + 1, r : r + 1]), state[b : b + 1])[
                :, 0
            ]
            for index, block in enumerate(expert.blocks):
                both = torch.cat([x, c], dim=1)
                x_next = block(both, torch.ones(1, 1, 1, both.shape[1], dtype=torch.bool))[:, :5]
                if index < depth:
                    c = block(c, torch.ones(1, 1, 1, c.shape[1], dtype=torch.bool))
                x = x_next
            velocity[b, r] = expert.velocity_out(expert.norm(x))[0]
    return velocity


def test_dropout_reaches_every_block_and_acts_in_training_only(expert, guided, inputs):
    actions, tau, state = inputs
    dropping = ActionExpert(replace(expert.config, dropout=0.4))
    dropping.load_state_dict(expert.state_dict())
    blocks: Any = list(dropping.blocks)
    assert {block.dropout for block in blocks} == {block.mlp.dropout for block in blocks} == {0.4}
    train, again = (dropping(actions, tau, state, dropping.context(guided)) for _ in range(2))
    assert not torch.equal(train, again)
    dropping.eval()
    expected = expert(actions, tau, state, expert.context(guided))
    assert torch.equal(dropping(actions, tau, state, dropping.context(guided)), expected)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_an_impossible_dropout_is_refused(config, dropout):
    with pytest.raises(ConfigError, match=r"Action Expert: dropout .* given, a share in \[0, 1\) expected"):
        replace(config.action, dropout=dropout)


def test_dropout_is_the_same_where_activations_are_computed_again(expert, guided, inputs):
    actions, tau, state = inputs
    found = []
    for again in (False, True):
        dropping = ActionExpert(replace(expert.config, dropout=0.4))
        dropping.load_state_dict(expert.state_dict())
        if again:
            checkpoint_activations(dropping)
        torch.manual_seed(4)
        dropping(actions, tau, state, dropping.context(guided)).square().sum().backward()
        found.append([parameter.grad for parameter in dropping.parameters()])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "expert", [attention for attention in ATTENTIONS if isinstance(attention, Prefix)], indirect=True
)
def test_prefix_equals_a_naive_twin_without_cache(expert, guided, inputs):
    expected = naive_prefix(expert, *inputs, guided=guided)
    torch.testing.assert_close(expert(*inputs, expert.context(guided)), expected, atol=1e-5, rtol=1e-4)


def test_draws_do_not_see_each_other(expert, guided, inputs):
    actions, tau, state = inputs
    together = expert(actions, tau, state, expert.context(guided))
    for r in range(DRAWS):
        alone = expert(actions[:, r : r + 1], tau[:, r : r + 1], state, expert.context(guided))
        torch.testing.assert_close(together[:, r : r + 1], alone, atol=1e-5, rtol=1e-4)


def test_actions_of_a_chunk_see_each_other(expert, guided, inputs):
    actions, tau, state = inputs
    context = expert.context(guided)
    before = expert(actions, tau, state, context)
    changed = actions.clone()
    changed[:, 0, 4] += 1
    after = expert(changed, tau, state, context)
    assert (after - before)[:, 0, 0].abs().max() > 1e-4
    assert torch.allclose(after[:, 1:], before[:, 1:], atol=1e-5)


def test_padding_never_matters(expert, batch, inputs, with_other_padding):
    outputs = []
    for encoded in (batch.encoded, with_other_padding(batch.encoded)):
        outputs.append(expert(*inputs, expert.context(Guided(tokens=encoded.tokens, mask=encoded.mask))))
    torch.testing.assert_close(*outputs)


def test_context_state_and_time_matter(expert, guided, inputs):
    actions, tau, state = inputs
    before = expert(actions, tau, state, expert.context(guided))
    others = [
        expert(actions, tau, state, expert.context(replace(guided, tokens=guided.tokens.flip(-1)))),
        expert(actions, tau, state + 1, expert.context(guided)),
        expert(actions, (tau + 0.5) % 1, state, expert.context(guided)),
    ]
    assert all((other - before).abs().max() > 1e-3 for other in others)


def context_outputs(expert: ActionExpert, guided, inputs) -> list[torch.Tensor]:
    """What every block makes of the context tokens while `inputs` are denoised."""
    seen = []
    hooks = [
        block.norm_mlp.register_forward_hook(lambda _module, args, _out: seen.append(args[0][..., -11:, :].detach()))
        for block in expert.blocks
        if isinstance(block, Block)
    ]
    expert(*inputs, expert.context(guided))
    for hook in hooks:
        hook.remove()
    return seen


def test_only_joint_lets_the_context_see_the_actions(config, model, guided, inputs):
    actions, tau, state = inputs
    joint = ActionExpert(replace(config.action, attention=Joint()))
    joint.load_state_dict(model.action_expert.state_dict())
    first, second = (context_outputs(joint, guided, (a, tau, state)) for a in (actions, actions + 1))
    assert (first[-1] - second[-1]).abs().max() > 1e-4

    prefix = model.action_expert
    context = prefix.context(guided)
    assert isinstance(context, PrefixContext)
    copies = [(kv.keys.clone(), kv.values.clone()) for kv in context.layers]
    prefix(actions, tau, state, context)
    for (keys, values), again in zip(copies, prefix.context(guided).layers, strict=True):
        assert torch.equal(keys, again.keys)
        assert torch.equal(values, again.values)


def test_prefix_runs_the_context_once_however_many_evaluations(config, model, guided, inputs):
    tokens_run, block = [], model.action_expert.blocks[1]
    assert isinstance(block, Block)
    block.mlp.register_forward_hook(lambda _m, args, _o: tokens_run.append(args[0].shape[1]))
    context = model.action_expert.context(guided)
    for _ in range(4):
        model.action_expert(*inputs, context)
    assert tokens_run == [11] + 4 * [DRAWS * 5]


def test_every_parameter_but_unused_positions_learns(expert, guided, inputs):
    expert(*inputs, expert.context(guided)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in expert.parameters())


def test_too_many_tokens_are_refused(config):
    expert = ActionExpert(replace(config.action, positions=12))
    with pytest.raises(MismatchError, match="11 context tokens given, at most 7 expected"):
        expert.context(Guided(tokens=torch.zeros(1, 11, 24), mask=torch.ones(1, 11, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "5 heads do not divide width 1024"),
        ({"positions": 10}, "10 positions given, more than the chunk of 10"),
        ({"attention": Prefix(context_layers=25)}, "context_layers 25 given, 0 to 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(ActionExpertConfig(token_width=8), **change)
