"""Pixels to actions in one recording: what the backbone and the experts give one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.conftest import spread
from tests.model.recording import NothingAsked
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lamp.model.action_expert import Joint
from lamp.model.fast import FastActor
from lamp.model.fast_step import FastStep
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import RepeatAndPad
from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_fast import LENGTH_STEP
from lamp.types import Encoded, LeftPadding, Observations, Padding, RightPadding

CAMERAS = (("a", 96), ("b", 64))
FIXED = 25
"""Tokens of a turn without its prompt's text."""


def built(folder: Path, **settings: object) -> Qwen3VLBackbone:
    config = Qwen3VLBackboneConfig(model=str(folder), cameras=CAMERAS, bfloat16=False)
    backbone = Qwen3VLBackbone(replace(config, **settings))
    backbone.accelerate()
    return backbone


def policy(config: LaMPConfig, positions: int = 96) -> LaMP:
    """A tiny policy as wide as the tiny Qwen's tokens."""
    assert config.motion is not None and config.action is not None
    motion = replace(config.motion, token_width=32, conditioning=RepeatAndPad(tokens=40))
    action = replace(config.action, token_width=32, attention=Joint(), positions=positions)
    assert isinstance(config.guidance, GuidanceConfig)
    guidance = replace(config.guidance, token_width=32, heads=2)
    return spread(LaMP(replace(config, token_width=32, motion=motion, guidance=guidance, action=action))).eval()


def given(model: LaMP, b: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(b)
    shapes = {"motion_noise": model.motion_shape or (), "action_noise": model.action_shape or (), "state": (9,)}
    return {name: torch.randn(b, *shape, generator=generator) for name, shape in shapes.items()}


def observed(instructions: tuple[str, ...]) -> Observations:
    generator = torch.Generator().manual_seed(4)
    images = {
        name: torch.randint(0, 256, (len(instructions), side, side, 3), generator=generator, dtype=torch.uint8)
        for name, side in CAMERAS
    }
    return Observations(images=images, instructions=instructions)


def step_of(backbone: Qwen3VLBackbone, model: LaMP) -> FastStep:
    assert backbone.fast is not None
    return FastStep(backbone.fast, FastActor(model), padding=backbone.padding, length=backbone.length)


BATCHES = (("open it",), ("pick up the milk",), ("open it", "pick up the milk", "put " * 12))


@pytest.mark.parametrize("text_tokens", [None, 14])
@pytest.mark.parametrize("padding", [RightPadding(), LeftPadding()])
def test_it_acts_as_the_stages_one_by_one(
    qwen_folder: Path, config, replayed: list[Mapping[str, torch.Size]], padding: Padding, text_tokens: int | None
) -> None:
    backbone, model = built(qwen_folder, padding=padding, text_tokens=text_tokens), policy(config)
    step = step_of(backbone, model)
    for instructions in BATCHES:
        inputs, rest = backbone.prepare(observed(instructions)), given(model, len(instructions))
        plain = model.act(backbone.encode(observed(instructions)), **rest)
        assert plain.std() > 0.1
        torch.testing.assert_close(step.act(inputs, **rest), plain, atol=1e-4, rtol=1e-4)
    if text_tokens is not None:
        # Of one batch size, one recording supports every instruction.
        assert [tuple(shapes["ids"]) for shapes in replayed] == [(1, 48), (4, 48)]
    elif isinstance(padding, RightPadding):
        assert [tuple(shapes["ids"]) for shapes in replayed] == [(1, 32), (4, 48)]


def test_a_prompt_that_fills_its_room_goes_without_a_mask(
    qwen_folder: Path, config, replayed: list[Mapping[str, torch.Size]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, model = built(qwen_folder, text_tokens=12), policy(config)
    step, asked, act = step_of(backbone, model), [], LaMP.act

    def watched(self: LaMP, encoded: Encoded, *given: Any, **named: Any) -> Tensor:
        asked.append(encoded.whole)
        return act(self, encoded, *given, **named)

    monkeypatch.setattr(LaMP, "act", watched)
    for words in ("put" + " put" * 11, "open it"):
        step.act(backbone.prepare(observed((words,))), **given(model, 1))
    assert asked == [True, False] and len(replayed) == 2


def test_it_stays_within_the_action_experts_positions(
    qwen_folder: Path, config, replayed: list[Mapping[str, torch.Size]]
) -> None:
    backbone = built(qwen_folder, text_tokens=None)
    inputs = backbone.prepare(observed(("put " * 10,)))
    longest = inputs.lengths[0]
    assert longest % LENGTH_STEP
    model = policy(config, positions=longest + 5)
    plain = model.act(backbone.encode(observed(("put " * 10,))), **given(model, 1))
    torch.testing.assert_close(step_of(backbone, model).act(inputs, **given(model, 1)), plain, atol=1e-4, rtol=1e-4)


def test_it_can_be_recorded(qwen_folder: Path, config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole function that is recorded asks no tensor for a value, and brings nothing from the host."""
    backbone, model = built(qwen_folder, text_tokens=14, padding=LeftPadding()), policy(config)
    step = step_of(backbone, model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def record(function, tensors, *, key):
        with torch.inference_mode(), mode, NothingAsked() as watch:
            actions = function(**{name: mode.from_tensor(tensor) for name, tensor in tensors.items()})
        assert watch.ran > 500
        return torch.zeros(actions.shape)

    monkeypatch.setattr(step._graphs, "run", record)
    found = step.act(backbone.prepare(observed(BATCHES[2])), **given(model, 3))
    assert found.shape == (3, 5, 7)
