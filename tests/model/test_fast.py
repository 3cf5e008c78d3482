"""The fast path acts as the plain one, and does less."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.conftest import spread
from tests.model.recording import FakeCuda, NothingAsked
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from lamp.flow_matching import Preconditioning
from lamp.model import layers
from lamp.model.action_expert import Joint
from lamp.model.fast import WARM_UP, CudaGraph, CudaGraphs, FastActor, pad_batch, prepare_model
from lamp.model.lamp import Departure, LaMP, LaMPConfig
from lamp.model.layers import Mlp
from lamp.model.motion_expert import AdaLNPooled, ImageFlow, RepeatAndPad
from lamp.model.motion_fusion import AddFusion, ConcatFusion, FlowHead, PathFusion, TokenFusion
from lamp.types import Encoded

needs_onednn = pytest.mark.skipif(not layers.has_onednn(), reason="torch was built without oneDNN")

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
    "tokens": lambda c: replace(c, guidance=TokenFusion(motion_width=32, heads=2, tokens=3)),
    "tokens, joint": lambda c: replace(
        c, guidance=TokenFusion(motion_width=32, heads=2, tokens=None), action=replace(c.action, attention=Joint())
    ),
    "path": lambda c: replace(c, guidance=PathFusion(cells=(2, 3), steps=4)),
    "flow head": lambda c: replace(c, motion=None, guidance=FlowHead(grid=(4, 6), horizon=8)),
    "first layer": lambda c: replace(c, motion=replace(c.motion, hidden_layer=0)),
    "dropout": lambda c: replace(c, action=replace(c.action, dropout=0.5)),
    "t_1": lambda c: replace(c, action=replace(c.action, sees_t_1=True)),
    "without motion": lambda c: replace(c, motion=None),
}
RECORDED = VARIANTS | {
    "preconditioned": lambda c: replace(
        c, motion=replace(c.motion, preconditioning=Preconditioning(data_std=(0.1, 0.2, 0.3)))
    ),
    "2-D": lambda c: replace(c, motion=replace(c.motion, flow=ImageFlow())),
    "whole times": lambda c: replace(c, motion=replace(c.motion, whole_time=True)),
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


def test_what_time_does_is_computed_once(model, batch, monkeypatch):
    actor, calls = FastActor(model), []
    expert: Any = actor.model.motion_expert
    for module in (expert.time, expert.modulate_out, *(block.norm_attention.modulate for block in expert.blocks)):
        module.register_forward_hook(lambda *_: calls.append(1))
    with monkeypatch.context() as watched:
        watched.setattr(actor.model.action_expert, "_times", lambda _: pytest.fail("an action's time was embedded"))
        actor.act(batch.encoded, batch.state, **noises(model, 2))
    assert calls == []
    actor.model.foresee(batch.encoded, noises(model, 2)["motion_noise"], steps=3)
    assert len(calls) == 2 * (2 + len(expert.blocks))  # 1/3 and 2/3; tau = 0 was known


def test_the_model_itself_stays_as_it_was(model, batch):
    before = model.eval().act(batch.encoded, batch.state, **noises(model, 2))
    twin = prepare_model(model)
    theirs = dict(twin.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in model.named_parameters())
    assert not any(isinstance(module, layers.PackedLinear) for module in model.modules())
    torch.testing.assert_close(model.act(batch.encoded, batch.state, **noises(model, 2)), before, rtol=0, atol=0)
    model.train().action_loss(batch, torch.Generator()).total.backward()
    assert model.guidance.project.weight.grad.abs().max() > 0


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", RECORDED)
def test_it_can_be_recorded(config, batch, variant, whole):
    """Nothing asks a tensor for a value, and nothing comes from the host."""
    model = prepare_model(spread(LaMP(RECORDED[variant](config))).eval(), torch.bfloat16)
    given = {"tokens": batch.encoded.tokens, "mask": batch.encoded.mask, "state": batch.state} | noises(model, 2)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.inference_mode(), mode, NothingAsked() as watch:
        fakes: dict[str, Any] = {
            name: tensor if tensor is None else mode.from_tensor(tensor) for name, tensor in given.items()
        }
        encoded = Encoded(tokens=fakes.pop("tokens"), mask=fakes.pop("mask"), whole=whole)
        actions = model.act(encoded, **fakes)
    assert actions.shape == (2, 5, 7) and watch.ran > 100


def test_what_asks_is_seen(batch):
    for asking in (lambda x: x.tokens.sum().item(), lambda x: x.tokens[x.mask], lambda _: torch.tensor([1.0])):
        with pytest.raises(AssertionError, match=r"called|mask"), NothingAsked():
            asking(batch.encoded)


def test_what_the_encoder_knows_is_not_asked_again(model, batch):
    actor, encoded = FastActor(model), without_padding(batch.encoded)
    with torch.inference_mode(), pytest.raises(AssertionError), NothingAsked():
        actor.act(encoded, batch.state, **noises(model, 2))
    with torch.inference_mode(), NothingAsked():
        actor.act(replace(encoded, whole=True), batch.state, **noises(model, 2))
        actor.act(replace(batch.encoded, whole=False), batch.state, **noises(model, 2))


def test_autocast_changes_nothing(model, batch):
    actor = FastActor(model, torch.bfloat16)
    alone = actor.act(batch.encoded, batch.state, **noises(model, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(actor.act(batch.encoded, batch.state, **noises(model, 2)), alone)


def test_z_enters_the_motion_expert_once(model, batch):
    calls = []
    model.eval().motion_expert.condition_in.register_forward_hook(lambda *_: calls.append(1))
    model.act(batch.encoded, batch.state, **noises(model, 2))
    assert len(calls) == 1
    model.foresee(batch.encoded, noises(model, 2)["motion_noise"])
    assert len(calls) == 2


def test_what_is_recorded_reads_the_same_places_and_outlives_its_maker(monkeypatch):
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    calls, weight = [], torch.tensor([2.0])
    watched = weakref.ref(weight)

    def function(x: torch.Tensor, nothing: None, weight: torch.Tensor = weight) -> torch.Tensor:
        calls.append((cuda.capturing, x))
        return x * weight

    given = {"x": torch.ones(1), "nothing": None}
    recorded = CudaGraph(function, given)
    del function, weight
    assert [capturing for capturing, _ in calls] == [False] * WARM_UP + [True]
    assert watched() is not None, "a replay would read what somebody else has there by now"
    assert cuda.events == [
        "side waits for main", "on side", "off side", "main waits for side", "recording, thread_local", "recorded",
    ]  # fmt: skip
    place = calls[0][1]
    assert all(x is place for _, x in calls) and place is not given["x"]
    first = recorded({"x": torch.tensor([5.0]), "nothing": None})
    graph: Any = recorded._graph
    assert place == 5 and graph.replays == 1 and first is not recorded._output


def test_another_type_is_another_recording(replayed):
    graphs = CudaGraphs()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert graphs.run(torch.neg, {"input": torch.ones(3, dtype=dtype)}).dtype == dtype
    assert len(replayed) == 2


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
    filled = pad_batch(x)
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
        # Four layers each. A motion block and the last of them; embedding actions; projecting and attending, for the context, for
        # actions and, where they see each other, for both.
        assert 5 <= found["pieces"] <= 9


@needs_onednn
class TestKernels:
    def test_packed_linear(self):
        linear = torch.nn.Linear(37, 53)
        packed, x = layers.PackedLinear(linear), torch.randn(3, 11, 37)
        with torch.inference_mode():
            exact = functional.linear(x.double(), linear.weight.double(), linear.bias.double()).float()
            torch.testing.assert_close(packed(x), exact)
            torch.testing.assert_close(packed(x.mT.contiguous().mT), exact)
        packed(x).sum().backward()
        assert linear.weight.grad is not None

    def test_packed_mlp(self):
        mlp, x = Mlp(24), torch.randn(2, 7, 24)
        packed = layers.PackedMlp(layers.PackedLinear(mlp.up), layers.PackedLinear(mlp.down))
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), mlp(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed(x), mlp(x))

    @pytest.mark.parametrize("masked", ["not", "one for all", "each"])
    def test_attention(self, masked):
        generator = torch.Generator().manual_seed(1)
        query, key, value = (torch.randn(2, n, 3, 16, generator=generator).transpose(1, 2) for n in (600, 517, 517))
        mask = None if masked == "not" else torch.rand(1 if masked == "one for all" else 2, 1, 1, 517) < 0.7
        with torch.inference_mode():
            assert layers.tiled_attention_suits(query, key, mask, 0.0)
            found = layers.tiled_attention(query, key, value, mask)
            torch.testing.assert_close(
                found, functional.scaled_dot_product_attention(query, key, value, attn_mask=mask), atol=1e-5, rtol=1e-5
            )

    def test_attention_is_not_for_learning_nor_for_a_mask_of_rows(self):
        x = torch.randn(1, 2, 600, 8)
        assert not layers.tiled_attention_suits(x, x, None, 0.0)
        with torch.inference_mode():
            assert layers.tiled_attention_suits(x, x, None, 0.0)
            assert not layers.tiled_attention_suits(x, x, None, 0.1)
            assert not layers.tiled_attention_suits(x, x, torch.ones(1, 1, 600, 600, dtype=torch.bool), 0.0)
            assert not layers.tiled_attention_suits(x.bfloat16(), x.bfloat16(), None, 0.0)
