"""What the speed benchmarks count and compare; how fast anything is, no test says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.recording import Replayed

import lamp.bench.infer as infer_module
import lamp.bench.models as models
import lamp.bench.timing as machine
import lamp.model.fast as fast_module
from lamp.bench.infer import InferConfig, bench_infer, flops_of, stage_figures, to_text
from lamp.bench.models import RandomQwen, qwen_config
from lamp.bench.timing import HardwareLimits, Timing
from lamp.bench.train_step import StoredBatch, TrainStepConfig, bench_train_step
from lamp.cli import main
from lamp.errors import ConfigError
from lamp.model.action_expert import ActionExpertConfig, Joint, Prefix
from lamp.model.fast import FastActor
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import Departure, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.recipes import training
from lamp.recipes.kinds import ModelRecipe
from lamp.types import Encoded, PolicyBatch

CPU = torch.device("cpu")
D, N, WIDTH, TOKENS = 48, 5, 32, 16  # motion width, backbone tokens, action width, motion tokens
TINY = ModelRecipe(
    name="tiny",
    summary="a model that takes no time",
    tokens=N,
    model=LaMPConfig(
        token_width=24,
        motion=MotionExpertConfig(
            token_width=24, width=D, layers=2, heads=2, grid=(4, 4), horizon=8, frames_per_token=2, time_channels=16
        ),
        guidance=GuidanceConfig(token_width=24, motion_width=D, heads=3),
        action=ActionExpertConfig(token_width=24, width=WIDTH, layers=2, heads=2, chunk=3, attention=Joint()),
    ),
)
SMALL_QWEN: dict[str, Any] = {
    "width": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "head_width": 32, "mlp": 48, "vision_width": 32,
    "vision_layers": 2, "vision_heads": 2, "vision_mlp": 40, "deepstack": (0, 1),
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_recipe", lambda name: TINY)


def brief(against: str) -> InferConfig:
    return InferConfig(recipe="tiny", against=against, seconds=0.1)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("against", ["plain", pytest.param("reference", marks=pytest.mark.diffusers)])
def test_a_chunk_is_measured_stage_by_stage(against: str) -> None:
    result = bench_infer(brief(against))
    assert list(result["stages"]) == ["motion", "guidance", "action"]
    assert result["evaluations"] == {"motion": 2, "guidance": 1, "action": 10}
    assert result["ratio"] == pytest.approx(result["other"]["p50_s"] / result["ours"]["p50_s"])
    assert result["floors_s"] == pytest.approx(sum(part["floor_s"] for part in result["stages"].values()))
    assert result["largest_difference"] < 1e-4
    assert result["cosine"] == pytest.approx(1, abs=1e-6)
    assert result["peak_bytes"] > 2**20
    assert result["machine"]["ceilings"]["matrix_flops"] > 1e8
    for part in result["stages"].values():
        assert 0 < part["of_matrix_rate"] < 1
        assert part["weight_bytes"] == 4 * part["parameters"] * part["evaluations"]
    told = to_text(result)
    assert all(word in told for word in ("motion", "guidance", "action", f"{against} / ours: {result['ratio']:.2f}"))


def joint_block(tokens: int, width: int, *, asking: int | None = None) -> int:
    """Multiply-adds of a block over `tokens`, of which only `asking` are carried on."""
    asking = tokens if asking is None else asking
    return tokens * 3 * width**2 + 2 * asking * tokens * width + asking * 9 * width**2


@pytest.mark.usefixtures("tiny")
def test_the_arithmetic_is_counted_as_by_hand() -> None:
    made = models.build_bench_model("tiny", batch=1, device=CPU, dtype=torch.float32)
    found = flops_of(made)
    time = 16 * D + D * D
    modulations = 2 * (2 * 6 * D * D) + 2 * D * D
    inputs, condition = TOKENS * 3 * 8 * D, N * 24 * D
    blocks = joint_block(TOKENS + N, D) + joint_block(TOKENS + N, D, asking=TOKENS)
    motion = 2 * (time + modulations + inputs + blocks) + condition + TOKENS * D * 3 * 8  # the last two once
    assert found["motion"] == pytest.approx(2 * motion)
    guidance = TOKENS * D * 24 + (2 * N + 2 * TOKENS) * 24**2 + 2 * N * TOKENS * 24
    assert found["guidance"] == pytest.approx(2 * guidance)


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_prefix_and_departure_need_less_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    made = models.build_bench_model("tiny", batch=1, device=CPU, dtype=torch.float32)
    assert TINY.model.action is not None
    action = replace(TINY.model.action, attention=Prefix())
    fast = replace(TINY, model=replace(TINY.model, action=action, hidden_at=Departure()))
    monkeypatch.setattr(models, "find_recipe", lambda name: fast)
    less = flops_of(models.build_bench_model("tiny", batch=1, device=CPU, dtype=torch.float32))
    assert less["motion"] < 0.55 * flops_of(made)["motion"]
    assert less["action"] < 0.65 * flops_of(made)["action"]


def test_tables_are_not_read_whole() -> None:
    part = torch.nn.Sequential(torch.nn.Embedding(1000, 4), torch.nn.Linear(4, 3))
    limits = HardwareLimits(matrix_flops=1.0, copy_bytes=1.0)
    found = stage_figures(0.0, part, 10, 2, Timing(p50_s=1.0, p95_s=1.0, best_s=1.0, runs=1), limits)
    assert (found["parameters"], found["weight_bytes"], found["floor_s"]) == (4015, 15 * 2 * 10, 300.0)


def test_a_copy_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Timing(p50_s=1.0, p95_s=1.0, best_s=1.0, runs=1)
    monkeypatch.setattr(machine, "measure", lambda ways, *_, **__: dict.fromkeys(ways, second))
    monkeypatch.setattr(machine, "MATRIX_SIDE", {"cpu": 8})
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 100})
    found = machine.measure_hardware(CPU, torch.float32)
    assert (found.matrix_flops, found.copy_bytes) == (2 * 8**3, 200)


def test_the_floor_is_the_larger_of_two() -> None:
    limits = HardwareLimits(matrix_flops=100.0, copy_bytes=10.0)
    assert limits.floor_s(200.0, 10.0) == 2
    assert limits.floor_s(100.0, 50.0) == 5


@pytest.mark.usefixtures("tiny")
def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "infer", "--recipe", "tiny", "--against", "plain", "--seconds", "0.1", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"ratio", "stages", "evaluations", "machine"} <= set(found)
    assert found["machine"]["threads"] == 1
    assert found["stages"]["motion"]["seconds"] > 0


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "infer", "--recipe", "bench_middle"]) == 2
    assert "bench_mid" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="batch is 0"):
        InferConfig(batch=0)
    with pytest.raises(ConfigError, match="bench_mid"):
        bench_train_step(TrainStepConfig(recipe="bench_mid"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            InferConfig(device="cuda")


@pytest.mark.slow
def test_a_training_step_is_measured_with_and_without_the_cache() -> None:
    result = bench_train_step(TrainStepConfig(recipe="demo", batch=1, seconds=0.1))
    assert set(result["stages"]["ours"]) == {"read", "forward", "backward", "optimiser"}
    assert set(result["stages"]["other"]) == {"vlm", "motion", "forward", "backward", "optimiser"}
    assert result["evaluations"] == {"motion": 0, "guidance": 1, "action": 2}
    assert result["ratio"] == pytest.approx(result["samples_per_s"]["ours"] / result["samples_per_s"]["other"])
    assert result["parameters"]["trained"] > 1e6
    assert result["flops"] > 1e8


@pytest.mark.slow
def test_a_training_step_of_the_motion_expert_is_measured() -> None:
    result = bench_train_step(TrainStepConfig(recipe="demo", stage="motion", batch=1, seconds=0.1))
    assert set(result["stages"]["ours"]) == {"read", "forward", "backward", "optimiser"}
    assert set(result["stages"]["other"]) == {"vlm", "forward", "backward", "optimiser"}
    assert result["evaluations"] == {"motion": 1} and result["flops"] > 1e8


def test_a_stored_batch_is_read_as_it_was_written(tmp_path: Path) -> None:
    tokens, hidden = torch.randn(3, 5, 4).half().float(), torch.randn(3, 2, 6).half().float()
    batch = PolicyBatch(
        encoded=Encoded(tokens=tokens, mask=torch.ones(3, 5, dtype=torch.bool)),
        state=torch.zeros(3, 2),
        actions=torch.zeros(3, 4, 7),
        action_mask=torch.ones(3, 4, dtype=torch.bool),
        motion_hidden=hidden,
    )
    stored = StoredBatch(batch, tmp_path)
    orders = []
    for _ in range(6):
        read = stored.read()
        assert isinstance(read, PolicyBatch) and read.motion_hidden is not None and read.state is batch.state
        rows = [next(row for row in range(3) if torch.equal(one, tokens[row])) for one in read.encoded.tokens]
        assert torch.equal(read.motion_hidden, hidden[rows]) and read.encoded.tokens.dtype == torch.float32
        orders.append(tuple(rows))
    assert len(set(orders)) > 1


def test_a_random_qwen_has_the_published_number_of_parameters() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.Qwen3VLModel(qwen_config())
    # The hub says 4.44 billion for Qwen3-VL-4B-Instruct.
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(4.44e9, rel=0.002)


def test_a_random_qwen_sees_views_and_words() -> None:
    pytest.importorskip("transformers")
    qwen = RandomQwen(
        views=2, text_tokens=7, batch=3, device=CPU, dtype=torch.float32, config=qwen_config(**SMALL_QWEN), side=64
    )
    tokens = qwen.plain()
    assert tokens.shape == (3, 2 * (4 + 2) + 7, 32)
    assert tokens.std(dim=1).min() > 0
    torch.testing.assert_close(qwen.fast(), tokens, atol=1e-4, rtol=1e-4)


def test_the_whole_step_is_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the pixels on, with a stand-in for the CUDA graph: the experts read what the model gives."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(fast_module, "CudaGraph", Replayed)
    qwen = RandomQwen(
        views=1, text_tokens=7, batch=3, device=CPU, dtype=torch.float32, config=qwen_config(**SMALL_QWEN), side=64
    )
    monkeypatch.setattr(models, "RandomQwen", lambda **_: qwen)
    assert TINY.model.motion is not None and TINY.model.action is not None
    assert isinstance(TINY.model.guidance, GuidanceConfig)
    wide = {"token_width": 32}
    model = replace(
        TINY.model,
        token_width=32,
        motion=replace(TINY.model.motion, **wide),
        guidance=replace(TINY.model.guidance, **wide, heads=4),
        action=replace(TINY.model.action, **wide),
    )
    paper = training("paper_simpler")
    recipe = replace(paper, policy=replace(paper.policy, model=model, execute=1))
    monkeypatch.setattr(models, "find_recipe", lambda name: recipe)
    made = models.build_bench_model("paper", batch=3, device=CPU, dtype=torch.float32)
    assert made.fast_step is not None
    tokens = qwen.plain()
    seen = Encoded(tokens=tokens, mask=torch.ones(3, 13, dtype=torch.bool))
    inputs: dict[str, Any] = {**made.inputs, "encoded": seen}
    expected = made.model.act(**inputs)
    actor = FastActor(made.model)
    torch.testing.assert_close(made.fast_step(actor)(**made.expert_inputs), expected, atol=1e-4, rtol=1e-4)
    actor.device = torch.device("cuda")
    torch.testing.assert_close(infer_module._ours(made, actor)(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("tiny")
def test_ours_runs_qwen_the_fast_way_and_the_other_side_as_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    asked: list[str] = []

    def backbone(recipe: object, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        qwen = RandomQwen(
            views=2, text_tokens=7, batch=batch, device=device, dtype=dtype, config=qwen_config(**SMALL_QWEN), side=64
        )
        ways = {"encode": qwen.plain, "encode_fast": qwen.fast}
        return {"vlm": qwen.vlm} | {name: lambda name=name: (asked.append(name), ways[name]())[1] for name in ways}

    monkeypatch.setattr(models, "_backbone", backbone)
    whole: dict[str, list[str]] = {}
    measure = infer_module.measure

    def watched(ways: dict[str, Any], *rest: Any, **named: Any) -> Any:
        for name, run in ways.items():
            asked.clear()
            run()
            whole[name] = list(asked)
        return measure(ways, *rest, **named)

    monkeypatch.setattr(infer_module, "measure", watched)
    result = bench_infer(brief("plain"))
    assert whole["ours"] == whole["vlm"] == ["encode_fast"]
    assert whole["other"] == ["encode"]
    assert result["vlm_cosine"] == pytest.approx(1, abs=1e-5)
    assert result["stages"]["vlm"]["flops"] > 1e6
    assert "both ways: 1.0000" in to_text(result)
