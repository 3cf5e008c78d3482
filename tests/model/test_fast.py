"""The fast path acts as the plain one, and does less."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.conftest import spread
from torch.nn import functional

from lamp.model import onednn
from lamp.model.action_expert import Joint
from lamp.model.fast import FastActor, prepared, with_twins
from lamp.model.fusion import AddFusion, ConcatFusion
from lamp.model.lamp import Departure, LaMP, LaMPConfig
from lamp.model.layers import Mlp
from lamp.model.motion_expert import AdaLNPooled, RepeatAndPad
from lamp.types import Encoded

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="torch was built without oneDNN")

VARIANTS: dict[str, Callable[[Any], LaMPConfig]] = {
    "as it is": lambda c: c,
    "departure": lambda c: replace(c, hidden_at=Departure()),
    "joint": lambda c: replace(c, action=replace(c.action, attention=Joint())),
    "joint, one layer": lambda c: replace(c, action=replace(c.action, attention=Joint(), layers=1)),
    "pooled": lambda c: replace(c, motion=replace(c.motion, conditioning=AdaLNPooled())),
    "repeated": lambda c: replace(c, motion=replace(c.motion, conditioning=RepeatAndPad(tokens=11))),
    "add": lambda c: replace(c, guidance=AddFusion(motion_width=32, heads=2)),
    "add, joint": lambda c: replace(
        c, guidance=AddFusion(motion_width=32, heads=2), action=replace(c.action, attention=Joint())
    ),
    "concat": lambda c: replace(c, guidance=ConcatFusion(motion_width=32, heads=2)),
    "first layer": lambda c: replace(c, motion=replace(c.motion, hidden_layer=0)),
    "t_1": lambda c: replace(c, action=replace(c.action, sees_t_1=True)),
    "without motion": lambda c: replace(c, motion=None),
}


def noises(model: LaMP, b: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"motion_noise": model.motion_shape, "action_noise": model.action_shape}
    return {name: shape and torch.randn(b, *shape, generator=generator) for name, shape in shapes.items()}


def without_padding(encoded: Encoded) -> Encoded:
    return replace(encoded, mask=torch.ones_like(encoded.mask))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_acts_as_the_plain_path(config, batch, variant, padded):
    model = spread(LaMP(VARIANTS[variant](config))).eval()
    encoded = batch.encoded if padded else without_padding(batch.encoded)
    plain = model.act(encoded, batch.state, **noises(model, 2))
    assert plain.std() > 0.1
    actor = FastActor(model)
    for _ in range(2):
        fast = actor.act(encoded, batch.state, **noises(model, 2))
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_bfloat16_points_the_same_way(model, batch):
    plain = model.eval().act(batch.encoded, batch.state, **noises(model, 2))
    fast = FastActor(model, torch.bfloat16).act(batch.encoded, batch.state, **noises(model, 2))
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, plain)
    assert functional.cosine_similarity(fast.flatten(), plain.flatten(), dim=0) >= 0.999


def test_what_time_does_is_computed_once(model, batch):
    actor, calls = FastActor(model), []
    expert: Any = actor.model.motion_expert
    for module in (expert.time, expert.modulate_out, *(block.norm_attention.modulate for block in expert.blocks)):
        module.register_forward_hook(lambda *_: calls.append(1))
    actor.act(batch.encoded, batch.state, **noises(model, 2))
    assert calls == []
    actor.model.foresee(batch.encoded, noises(model, 2)["motion_noise"], steps=3)
    assert len(calls) == 2 * (2 + len(expert.blocks))  # 1/3 and 2/3; tau = 0 was known


def test_the_model_itself_stays_as_it_was(model, batch):
    before = model.eval().act(batch.encoded, batch.state, **noises(model, 2))
    twin = prepared(model)
    theirs = dict(twin.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in model.named_parameters())
    assert not any(isinstance(module, onednn.PackedLinear) for module in model.modules())
    torch.testing.assert_close(model.act(batch.encoded, batch.state, **noises(model, 2)), before, rtol=0, atol=0)
    model.train().action_loss(batch, torch.Generator()).total.backward()
    assert model.guidance.project.weight.grad.abs().max() > 0


def test_a_whole_batch_needs_no_mask(model, batch, monkeypatch):
    masks = []
    real = functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **named):
        masks.append(attn_mask)
        return real(query, key, value, attn_mask=attn_mask, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    actor = FastActor(model)
    actor.act(without_padding(batch.encoded), batch.state, **noises(model, 2))
    assert masks
    assert all(mask is None for mask in masks)
    masks.clear()
    actor.act(batch.encoded, batch.state, **noises(model, 2))
    assert any(mask is not None for mask in masks)


@pytest.mark.parametrize(("given", "room"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8)])
def test_batches_are_filled_up_with_twins_of_the_last_sample(given, room):
    x = torch.arange(given * 6).reshape(given, 2, 3)
    filled = with_twins(x)
    assert len(filled) == room
    assert torch.equal(filled[:given], x)
    assert all(torch.equal(row, x[-1]) for row in filled[given:])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch's compiler needs g++ on a CPU")
def test_blocks_compile_whole_and_once_for_all_layers():
    command = [sys.executable, "-m", "tests.model.compiled_blocks"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    for found in json.loads(run.stdout).values():
        assert found["cosine"] >= 0.999
        # Four layers each. A motion block and the last of them; projecting and attending, in context and actions.
        assert 4 <= found["pieces"] <= 8


@needs_onednn
class TestKernels:
    def test_packed_linear(self):
        linear = torch.nn.Linear(37, 53)
        packed, x = onednn.PackedLinear(linear), torch.randn(3, 11, 37)
        with torch.inference_mode():
            exact = functional.linear(x.double(), linear.weight.double(), linear.bias.double()).float()
            torch.testing.assert_close(packed(x), exact)
            torch.testing.assert_close(packed(x.mT.contiguous().mT), exact)
        packed(x).sum().backward()
        assert linear.weight.grad is not None

    def test_packed_mlp(self):
        mlp, x = Mlp(24), torch.randn(2, 7, 24)
        packed = onednn.PackedMlp(onednn.PackedLinear(mlp.up), onednn.PackedLinear(mlp.down))
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), mlp(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed(x), mlp(x))

    @pytest.mark.parametrize("masked", ["not", "one for all", "each"])
    def test_attention(self, masked):
        generator = torch.Generator().manual_seed(1)
        query, key, value = (torch.randn(2, n, 3, 16, generator=generator).transpose(1, 2) for n in (600, 517, 517))
        mask = None if masked == "not" else torch.rand(1 if masked == "one for all" else 2, 1, 1, 517) < 0.7
        with torch.inference_mode():
            assert onednn.fits(query, key, mask, 0.0)
            found = onednn.attention(query, key, value, mask)
            torch.testing.assert_close(
                found, functional.scaled_dot_product_attention(query, key, value, attn_mask=mask), atol=1e-5, rtol=1e-5
            )

    def test_attention_is_not_for_learning_nor_for_a_mask_of_rows(self):
        x = torch.randn(1, 2, 600, 8)
        assert not onednn.fits(x, x, None, 0.0)
        with torch.inference_mode():
            assert onednn.fits(x, x, None, 0.0)
            assert not onednn.fits(x, x, None, 0.1)
            assert not onednn.fits(x, x, torch.ones(1, 1, 600, 600, dtype=torch.bool), 0.0)
            assert not onednn.fits(x.bfloat16(), x.bfloat16(), None, 0.0)
