"""The fast path of Qwen3-VL computes what transformers' own forward computes, and asks no tensor for a value."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.conftest import spread
from tests.model.recording import NothingAsked
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional

from lamp.errors import MismatchError
from lamp.model.fast import GRAPHS_KEPT, CudaGraphs, FastActor
from lamp.model.lamp import LaMP
from lamp.model.qwen3_vl import PostNorm, PreNorm, Qwen3VLBackbone, Qwen3VLBackboneConfig, QwenInputs
from lamp.model.qwen_fast import FastQwen, StaticQwen
from lamp.types import Observations

CAMERAS = {
    "one view": (("a", 96),),
    "two alike": (("a", 64), ("b", 64)),
    "two sizes": (("a", 96), ("b", 64)),
    "mixed": (("a", 96), ("b", 64), ("c", 96), ("d", 128)),
}
INSTRUCTIONS = ("pick up the milk", "put both moka pots on the stove", "open it")
NO_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


def built(folder: Path, cameras: str = "two sizes", **settings: object) -> Qwen3VLBackbone:
    config = Qwen3VLBackboneConfig(model=str(folder), cameras=CAMERAS[cameras], bfloat16=False, text_tokens=None)
    return Qwen3VLBackbone(replace(config, **settings))


@pytest.fixture(scope="module")
def backbone(qwen_folder: Path) -> Qwen3VLBackbone:
    """Not to be accelerated: others use it too."""
    return built(qwen_folder)


def observed(backbone: Qwen3VLBackbone, instructions: tuple[str, ...] = INSTRUCTIONS, seed: int = 4) -> Observations:
    generator = torch.Generator().manual_seed(seed)
    images = {
        name: torch.randint(0, 256, (len(instructions), side, side, 3), generator=generator, dtype=torch.uint8)
        for name, side in backbone.config.cameras
    }
    return Observations(images=images, instructions=instructions)


def fast_of(backbone: Qwen3VLBackbone) -> FastQwen:
    ids = backbone.tokenizer.turn("anything", backbone._image_tokens)
    return FastQwen(backbone.vlm, ids, backbone._grid)


def real(tokens: Tensor, inputs: QwenInputs) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(tokens, inputs.lengths, strict=True)])


@pytest.mark.parametrize("layer", [PreNorm(), PostNorm()])
@pytest.mark.parametrize("cameras", CAMERAS)
def test_it_computes_what_transformers_computes(qwen_folder: Path, cameras: str, layer: PreNorm | PostNorm) -> None:
    backbone = built(qwen_folder, cameras, layer=layer)
    inputs = backbone.prepare(observed(backbone))
    assert len(set(inputs.lengths)) == 3
    plain = real(backbone(inputs), inputs)
    found = real(fast_of(backbone)(inputs.ids, inputs.positions, inputs.patches), inputs)
    assert plain.std() > 0.1
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cameras", ["two alike", "mixed"])
def test_bfloat16_points_the_same_way(qwen_folder: Path, cameras: str) -> None:
    backbone = built(qwen_folder, cameras, bfloat16=True)
    observations = observed(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = backbone.encode(observations)
        backbone.accelerate()
        found = backbone.encode(observations)
    assert found.tokens.dtype == torch.bfloat16 and torch.equal(found.mask, plain.mask)
    alike = functional.cosine_similarity(found.tokens.float(), plain.tokens.float(), dim=-1)
    assert alike[plain.mask].min() >= 0.9999


def test_a_backbone_takes_it_once_for_every_instruction_and_batch(
    qwen_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = built(qwen_folder)
    asked = [("open it",), INSTRUCTIONS, ("put the milk and the two moka pots into the basket",) * 2]
    plain = [backbone.encode(observed(backbone, instructions)) for instructions in asked]
    backbone.accelerate()
    fast = backbone.fast
    backbone.accelerate()
    assert backbone.fast is fast, "what is recorded is not thrown away"
    monkeypatch.setattr(backbone.vlm, "forward", lambda **_: pytest.fail("transformers' own forward ran"))
    for instructions, expected in zip(asked, plain, strict=True):
        found = backbone.encode(observed(backbone, instructions))
        torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.mask, expected.mask)


def test_images_are_kept_apart_and_in_their_places(qwen_folder: Path) -> None:
    """A token of an image is moved by the images before it (language) and by its own; never by a later one (vision)."""
    backbone = built(qwen_folder, "mixed")
    backbone.accelerate()
    observations = observed(backbone)
    before = backbone.encode(observations).tokens
    start = 4
    for name, side in backbone.config.cameras:
        changed = observations.images | {name: 255 - observations.images[name]}
        after = backbone.encode(replace(observations, images=changed)).tokens
        moved = (after - before).abs().amax((0, 2)) > 1e-4
        own = backbone.rule.tokens(side)
        assert not moved[:start].any() and moved[start : start + own].all()
        start += own + 2


class TestOnTensorsWithoutValues:
    """Where there are no values, asking for one raises: what passes here can be recorded as a CUDA graph."""

    @staticmethod
    def fake(mode: FakeTensorMode, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: mode.from_tensor(tensor) for name, tensor in given.items()}

    def test_qwen(self, qwen_folder: Path) -> None:
        backbone = built(qwen_folder, "mixed", bfloat16=True)
        inputs = backbone.prepare(observed(backbone))
        static = StaticQwen(backbone.vlm, backbone.tokenizer.turn("", backbone._image_tokens), backbone._grid)
        given = {
            "ids": inputs.ids,
            "positions": inputs.positions.transpose(0, 1),
            "patches": inputs.patches.unflatten(0, (3, -1)),
        }
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.inference_mode(), mode, NothingAsked():
            tokens = static(**self.fake(mode, given))
        assert tokens.shape == (*inputs.ids.shape, 32)

    def test_transformers_own_forward_does_ask(self, backbone: Qwen3VLBackbone) -> None:
        inputs = backbone.prepare(observed(backbone))
        given = {
            "input_ids": inputs.ids,
            "position_ids": inputs.positions,
            "pixel_values": inputs.patches,
            "image_grid_thw": inputs.grid,
        }
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.no_grad(), mode, pytest.raises(NO_VALUES):
            backbone.vlm(**self.fake(mode, given))


def test_few_lengths_and_batch_sizes_are_recorded(
    backbone: Qwen3VLBackbone, replayed: list[Mapping[str, torch.Size]]
) -> None:
    fast = fast_of(backbone)
    fast.device = torch.device("cuda")
    for instructions in (("open it",), ("pick up the milk",), INSTRUCTIONS, (*INSTRUCTIONS, "put " * 12), ("it",) * 4):
        inputs = backbone.prepare(observed(backbone, instructions))
        found = fast(inputs.ids, inputs.positions, inputs.patches)
        assert found.shape[:2] == inputs.ids.shape
        torch.testing.assert_close(real(found, inputs), real(backbone(inputs), inputs), atol=1e-5, rtol=1e-5)
    assert [tuple(shapes["ids"]) for shapes in replayed] == [(1, 32), (4, 48), (4, 32)]


def test_with_room_for_a_prompt_every_instruction_has_one_recording(
    qwen_folder: Path, replayed: list[Mapping[str, torch.Size]]
) -> None:
    backbone = built(qwen_folder, text_tokens=30)
    asked = [("open it",), ("put the milk and the two moka pots into the basket",), ("put " * 29,)]
    plain = [backbone.encode(observed(backbone, instructions)) for instructions in asked]
    backbone.accelerate()
    assert backbone.fast is not None
    backbone.fast.device = torch.device("cuda")
    for instructions, expected in zip(asked, plain, strict=True):
        inputs = backbone.prepare(observed(backbone, instructions))
        found = backbone.fast(inputs.ids, inputs.positions, inputs.patches, length=backbone.length)
        torch.testing.assert_close(real(found, inputs), expected.tokens[expected.mask], atol=1e-5, rtol=1e-5)
    (shapes,) = replayed
    assert tuple(shapes["ids"]) == (1, 64) and backbone.length == 55


def test_flash_attention_is_torch_s_own_on_the_fast_path(qwen_folder: Path) -> None:
    backbone = built(qwen_folder)
    plain = backbone.encode(observed(backbone))
    backbone.vlm.language_model.config._attn_implementation = "flash_attention_2"
    backbone.accelerate()
    torch.testing.assert_close(backbone.encode(observed(backbone)).tokens, plain.tokens, atol=1e-5, rtol=1e-5)


def test_the_graph_used_longest_ago_is_dropped(replayed: list[Mapping[str, torch.Size]]) -> None:
    graphs = CudaGraphs()
    for length in [*range(GRAPHS_KEPT), 0, GRAPHS_KEPT, 0, 1]:
        assert graphs.run(torch.neg, {"input": torch.ones(length)}).sum() == -length
    assert [shapes["input"][0] for shapes in replayed] == [*range(GRAPHS_KEPT), GRAPHS_KEPT, 1]
    assert graphs.run(torch.abs, {"input": torch.ones(1)}, key="abs") == 1


def test_a_sequence_without_room_for_the_images_is_refused(backbone: Qwen3VLBackbone) -> None:
    ids = backbone.tokenizer.turn("open it", [9, 5])
    with pytest.raises(MismatchError, match=r"14 image tokens; 13 tokens expected for images of \[36, 16\] patches"):
        StaticQwen(backbone.vlm, ids, backbone._grid)


def compiled(module: str, *arguments: str) -> dict[str, dict[str, float]]:
    """Runs a module of this folder by itself, and returns what it printed."""
    command = [sys.executable, "-m", f"tests.model.{module}", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch's compiler needs g++ on a CPU")
def test_blocks_compile_whole_and_once_for_all_layers(qwen_folder: Path) -> None:
    found = compiled("compiled_qwen", str(qwen_folder), "cpu")["static"]
    assert found["cosine"] >= 0.9999
    assert found["pieces"] == 2, "vision blocks and language layers"


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.mark.parametrize("cameras", CAMERAS)
    def test_what_is_replayed_equals_transformers(self, qwen_folder: Path, cameras: str) -> None:
        backbone = built(qwen_folder, cameras).to("cuda")
        ids = backbone.tokenizer.turn("", backbone._image_tokens)
        fast = FastQwen(backbone.vlm, ids, backbone._grid, compiled=False)
        for seed, instructions in enumerate([INSTRUCTIONS, INSTRUCTIONS[::-1], ("open it",), INSTRUCTIONS]):
            inputs = backbone.prepare(observed(backbone, instructions, seed))
            found = real(fast(inputs.ids, inputs.positions, inputs.patches), inputs)
            torch.testing.assert_close(found, real(backbone(inputs), inputs), atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("whole", [False, True])
    def test_the_experts_replayed_equal_the_plain_path(self, config, batch, whole) -> None:
        model = spread(LaMP(config)).eval().to("cuda")
        batch = batch.to("cuda")
        mask = torch.ones_like(batch.encoded.mask) if whole else batch.encoded.mask
        actor, encoded = FastActor(model, compiled=False), replace(batch.encoded, mask=mask)
        for seed in range(3):
            generator = torch.Generator("cuda").manual_seed(seed)
            shapes = {"motion_noise": model.motion_shape or (), "action_noise": model.action_shape or ()}
            noise: Any = {
                name: torch.randn(2, *shape, generator=generator, device="cuda") for name, shape in shapes.items()
            }
            fast, plain = (way.act(encoded, batch.state, **noise) for way in (actor, model))
            torch.testing.assert_close(fast, plain, atol=1e-3, rtol=1e-3)

    def test_compiled_and_recorded(self, qwen_folder: Path) -> None:
        found = compiled("compiled_qwen", str(qwen_folder), "cuda") | compiled("compiled_blocks", "cuda")
        assert set(found) == {"static", "recorded", "joint", "prefix"}
        assert {name: each["cosine"] for name, each in found.items() if each["cosine"] < 0.999} == {}
