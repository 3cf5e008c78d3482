"""The Motion Expert: packing by hand, one block against a naive twin of CogVideoX's, what may and may not matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from lamp.errors import ConfigError
from lamp.flow_matching import Preconditioning
from lamp.model.motion_expert import MotionBlock, MotionExpert, MotionExpertConfig, RepeatAndPad
from lamp.types import Encoded


@pytest.fixture
def expert(model) -> MotionExpert:
    return model.motion_expert


def test_tokens_hold_two_by_two_points_and_two_steps(expert):
    rows, columns, horizon = 4, 6, 8
    row, column, step, axis = torch.meshgrid(*(torch.arange(n) for n in (rows, columns, horizon, 3)), indexing="ij")
    motion = (1000 * row + 100 * column + 10 * step + axis).float().reshape(1, rows * columns, horizon, 3)
    tokens = expert.patchify(motion)
    assert tokens.shape == (1, 4 * 2 * 3, 24)
    second_frame_last_row_middle = tokens[0, 1 * 6 + 1 * 3 + 1].reshape(3, 2, 2, 2)
    for axis, step, i, j in [(0, 0, 0, 0), (2, 1, 1, 0), (1, 1, 0, 1)]:
        expected = 1000 * (2 + i) + 100 * (2 + j) + 10 * (2 + step) + axis
        assert second_frame_last_row_middle[axis, step, i, j] == expected


def test_unpatchify_inverts_patchify(expert, batch):
    assert torch.equal(expert.unpatchify(expert.patchify(batch.motion.values)), batch.motion.values)


def naive_block(block: MotionBlock, condition, motion, time, mask):
    """CogVideoX's block written out: one sample, one head and one query at a time."""
    n, heads = condition.shape[1], block.heads

    def modulated(ada, x, parts):
        shift, scale, _ = parts
        return functional.layer_norm(x, x.shape[-1:], ada.norm.weight, ada.norm.bias) * (1 + scale) + shift

    outputs = []
    for b in range(len(condition)):
        first = block.norm_attention.modulate(functional.silu(time[b])).chunk(6)
        second = block.norm_mlp.modulate(functional.silu(time[b])).chunk(6)
        rows = [modulated(block.norm_attention, x, first[3:]) for x in condition[b]]
        rows += [modulated(block.norm_attention, x, first[:3]) for x in motion[b]]
        projected = [block.query_key_value(row).chunk(3) for row in rows]
        attended = []
        for q, _, _ in projected:
            parts = []
            for h in range(heads):
                query = block.norm_query(q.chunk(heads)[h])
                keys = [block.norm_key(k.chunk(heads)[h]) for _, k, _ in projected]
                scores = torch.stack([query @ key / len(query) ** 0.5 for key in keys])
                weights = scores.masked_fill(~mask[b], -torch.inf).softmax(0)
                parts.append(sum(w * v.chunk(heads)[h] for w, (_, _, v) in zip(weights, projected, strict=True)))
            attended.append(block.out(torch.cat(parts)))
        stream = torch.cat([condition[b], motion[b]])
        gates = [(first[5], second[3:]) if i < n else (first[2], second[:3]) for i in range(len(stream))]
        for i, (gate, parts) in enumerate(gates):
            x = stream[i] + gate * attended[i]
            stream = stream.clone()
            stream[i] = x + parts[2] * block.mlp(modulated(block.norm_mlp, x, parts))
        outputs.append(stream)
    joint = torch.stack(outputs)
    return joint[:, :n], joint[:, n:]


def test_block_equals_a_naive_cogvideox_block(expert):
    block, generator = expert.blocks[0], torch.Generator().manual_seed(1)
    condition, motion, time = (torch.randn(2, *shape, generator=generator) for shape in [(5, 32), (4, 32), (32,)])
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 3:5] = False
    expected = naive_block(block, condition, motion, time, mask)
    ours = block(condition, motion, block.modulation(time), mask[:, None, None])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    last = block(condition, motion, block.modulation(time), mask[:, None, None], last=True)
    assert torch.equal(last[0], condition)
    torch.testing.assert_close(last[1], expected[1], atol=1e-4, rtol=1e-4)


def test_padding_never_matters(expert, batch, with_other_padding):
    tau = torch.tensor([0.3, 0.7])
    for network in (expert, expert.hidden):
        before = network(batch.motion.values, tau, batch.encoded)
        after = network(batch.motion.values, tau, with_other_padding(batch.encoded))
        torch.testing.assert_close(before, after)


def test_condition_and_time_matter(expert, batch):
    values, tau = batch.motion.values, torch.tensor([0.3, 0.7])
    velocity = expert(values, tau, batch.encoded)
    other = replace(batch.encoded, tokens=batch.encoded.tokens.flip(-1))
    assert (expert(values, tau, other) - velocity).abs().max() > 1e-3
    assert (expert(values, tau + 0.1, batch.encoded) - velocity).abs().max() > 1e-3


def test_a_new_expert_predicts_zero(config, batch):
    velocity = MotionExpert(config.motion)(batch.motion.values, torch.tensor([0.3, 0.7]), batch.encoded)
    assert (velocity == 0).all()


def test_a_preconditioned_expert_predicts_what_the_state_does_not_tell(config, expert, batch):
    preconditioning = Preconditioning(data_std=(0.1, 0.2, 0.3))
    ours = MotionExpert(replace(config.motion, preconditioning=preconditioning))
    motion, tau = batch.motion.values, torch.tensor([0.3, 0.7])
    scale_in, skip, out = preconditioning.coefficients(tau, motion)
    torch.testing.assert_close(ours(motion, tau, batch.encoded), skip * motion)  # a new network says nothing of its own
    ours.load_state_dict(expert.state_dict())
    within = expert(scale_in * motion, tau, batch.encoded)
    torch.testing.assert_close(ours(motion, tau, batch.encoded), skip * motion + out * within)
    hidden = expert.hidden(scale_in * motion, tau, batch.encoded)
    torch.testing.assert_close(ours.hidden(motion, tau, batch.encoded), hidden)
    torch.testing.assert_close(ours.error_scale(tau, motion), out)
    assert expert.error_scale(tau, motion) == 1


def test_hidden_is_the_chosen_blocks_output_before_the_final_norm(config, expert, batch):
    seen = []
    for block in expert.blocks:
        block.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[1]))
    tau = torch.tensor([0.3, 0.7])
    expert(batch.motion.values, tau, batch.encoded)
    outputs = list(seen)
    torch.testing.assert_close(expert.hidden(batch.motion.values, tau, batch.encoded), outputs[2])
    earlier = MotionExpert(replace(config.motion, hidden_layer=1))
    earlier.load_state_dict(expert.state_dict())
    torch.testing.assert_close(earlier.hidden(batch.motion.values, tau, batch.encoded), outputs[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, r"patch 3 does not divide the grid \(20, 20\)"),
        ({"frames_per_token": 5}, "frames_per_token 5 does not divide the horizon 32"),
        ({"hidden_layer": 12}, "hidden_layer 12 given, -12 to 11 expected"),
        ({"preconditioning": Preconditioning(data_std=(0.1,))}, "three numbers"),
        ({"heads": 7}, "7 heads do not divide width 1024"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(MotionExpertConfig(token_width=8), **change)


def test_the_papers_sizes():
    assert MotionExpertConfig(token_width=2560).tokens == 1600
    assert MotionExpertConfig(token_width=2560, frames_per_token=1).tokens == 3200
    assert MotionExpertConfig(token_width=400, horizon=8, frames_per_token=8).tokens == 100


def repeated(config, tokens: int) -> MotionExpert:
    expert = MotionExpert(replace(config.motion, conditioning=RepeatAndPad(tokens=tokens)))
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.1)
    return expert


@pytest.mark.parametrize(
    ("real", "wanted", "rows"),
    [
        ([0, 1, 2], 8, "012012ab"),
        ([0, 1, 2], 6, "012012"),
        ([0, 1, 2], 3, "012"),
        ([0, 1, 2], 2, "01"),
        ([1, 3, 4], 2, "13"),
        ([2, 3], 5, "2323a"),
        ([3], 4, "3333"),
        ([0, 1, 2, 3, 4], 9, "01234abcd"),
        ([0, 1, 2, 3, 4], 1, "0"),
        ([], 2, "ab"),
    ],
)
def test_condition_tokens_are_cut_or_repeated_whole_and_filled(config, real, wanted, rows):
    expert = repeated(config, wanted)
    tokens = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, real], mask[0] = True, True  # the other sample of the batch has other tokens
    condition, seen = expert.condition(Encoded(tokens=tokens, mask=mask))
    assert seen is None and condition.shape == (2, wanted, 32)
    projected = expert.condition_in(tokens[1])
    letters = {letter: expert.filling[index] + expert.condition_in.bias for index, letter in enumerate("abcd"[:wanted])}
    expected = torch.stack([letters[row] if row in letters else projected[int(row)] for row in rows])
    if real:
        torch.testing.assert_close(condition[1], expected)
    assert condition.isfinite().all()


def test_repeated_tokens_do_not_depend_on_the_batch(config, batch, with_other_padding):
    expert, values, tau = repeated(config, 13), batch.motion.values, torch.tensor([0.3, 0.7])
    together = expert(values, tau, with_other_padding(batch.encoded))
    for index in range(2):
        real = batch.encoded.tokens[index][batch.encoded.mask[index]][None]
        alone = Encoded(tokens=real, mask=torch.ones(real.shape[:2], dtype=torch.bool))
        ours = expert(values[index : index + 1], tau[index : index + 1], alone)
        torch.testing.assert_close(together[index : index + 1], ours, atol=1e-5, rtol=1e-5)


def test_the_filling_is_learnt(config, batch):
    expert = repeated(config, 13)
    expert(batch.motion.values, torch.tensor([0.3, 0.7]), batch.encoded).square().mean().backward()
    assert expert.filling.grad is not None and (expert.filling.grad[:2] != 0).any()
    # 11 and 8 tokens fill 13 rows up with 2 and 5 more.
    assert (expert.filling.grad[5:] == 0).all()


def test_no_condition_tokens_at_all():
    with pytest.raises(ConfigError, match="0 tokens given"):
        RepeatAndPad(tokens=0)


def test_whole_time_sees_no_more_than_thousandths(config, expert, batch):
    whole = MotionExpert(replace(config.motion, whole_time=True))
    whole.load_state_dict(expert.state_dict())
    at = [whole(batch.motion.values, torch.full((2,), tau), batch.encoded) for tau in (0.3, 0.3005, 0.301)]
    assert torch.equal(at[0], at[1]) and not torch.equal(at[0], at[2])
    torch.testing.assert_close(
        at[0], expert(batch.motion.values, torch.full((2,), 0.3), batch.encoded), atol=1e-4, rtol=0
    )
