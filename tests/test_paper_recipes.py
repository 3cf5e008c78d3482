"""The full-size recipes against Tables III and IV of the paper, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lamp.data.dataloader import Sampler
from lamp.data.normalizers import ByDeviation, ByQuantiles, ByRange
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.parameter_count import expected_parameters
from lamp.model.qwen3_vl import PreNorm, Qwen3VLBackboneConfig
from lamp.recipes import TrainingRecipe, training
from lamp.train.config import BFloat16, LoopConfig
from lamp.train.optimizer import AdamW, cosine

TABLE_III: dict[str, Any] = {
    "Batch size (per GPU)": 32,
    "Global batch size": 32 * 16,
    "Hidden dimension": 1024,
    "Transformer layers": 12,
    "Patch size": (1, 2, 2),
    "Grid resolution": (20, 20),
    "Optimizer": "AdamW",
    "Betas": (0.9, 0.95),
    "Weight decay": 1e-8,
    "Learning rate": 2e-4,
    "Warm-up steps": 0,
    "Scheduler": "cosine_with_min_lr",
    "Training epochs": 30,
    "Precision": "bfloat16",
}
TABLE_IV: dict[str, tuple[Any, Any, Any]] = {
    "Batch size (per GPU)": (32, 32, 32),
    "Global batch size": (32 * 16, 32 * 16, 32 * 16),
    "Action chunk horizon H": (9, 29, 15),
    "Image resize": ((224, 224), (224, 224), (224, 224)),
    "Action normalization": ("on", "on", "on"),
    "Data shuffling": ("on", "on", "on"),
    "Optimizer": ("AdamW", "AdamW", "AdamW"),
    "Betas": ((0.9, 0.95), (0.9, 0.95), (0.9, 0.95)),
    "Weight decay": (0.0, 0.0, 0.0),
    "Learning rate": (1e-4, 1e-4, 2e-4),
    "Warm-up steps": (0, 0, 0),
    "Scheduler": ("cosine_with_min_lr", "cosine_with_min_lr", "cosine_with_min_lr"),
    "Training steps": (15_000, 15_000, 20_000),
    "Precision": ("bfloat16", "bfloat16", "bfloat16"),
}
COLUMNS = ("paper_libero", "paper_simpler", "paper_real")
TRIPLETS = 1_600_000
"""Section III-F: observation-language-motion triplets of Stage 1."""


def warm_up(loop: LoopConfig) -> int:
    """Steps before the schedule reaches its full rate."""
    rates = [cosine(step / loop.steps, lr=loop.optimiser.lr, min_lr=loop.min_lr) for step in range(1000)]
    return int(np.argmax(rates))


def scheduler(loop: LoopConfig) -> str:
    lr, least = loop.optimiser.lr, loop.min_lr
    middle, end = (cosine(fraction, lr=lr, min_lr=least) for fraction in (0.5, 1.0))
    is_cosine = middle == pytest.approx((lr + least) / 2) and end == least
    return "cosine_with_min_lr" if is_cosine and 0 < least < lr else "another"


def shuffled(loop: LoopConfig) -> str:
    """What training draws its samples with; it has no switch."""
    sampler = Sampler(1000, loop.batch_size, seed=loop.seed)
    first, second = next(sampler).indices, next(sampler).indices
    return "on" if not np.array_equal(np.sort(first), first) and not np.array_equal(first, second) else "off"


def of_loop(recipe: TrainingRecipe, loop: LoopConfig) -> dict[str, Any]:
    """The rows that both tables have."""
    return {
        "Batch size (per GPU)": loop.batch_size / recipe.gpus,
        "Global batch size": loop.batch_size,
        "Optimizer": "AdamW" if type(loop.optimiser) is AdamW else "another",
        "Betas": loop.optimiser.betas,
        "Weight decay": loop.optimiser.weight_decay,
        "Learning rate": loop.optimiser.lr,
        "Warm-up steps": warm_up(loop),
        "Scheduler": scheduler(loop),
        "Precision": "bfloat16" if loop.precision == BFloat16() else "another",
    }


def table_iii(recipe: TrainingRecipe) -> dict[str, Any]:
    assert recipe.motion is not None
    motion, loop = recipe.motion.model.motion, recipe.motion.loop
    assert motion is not None
    return of_loop(recipe, loop) | {
        "Hidden dimension": motion.width,
        "Transformer layers": motion.layers,
        "Patch size": (motion.frames_per_token, motion.patch, motion.patch),
        "Grid resolution": motion.grid,
        "Training epochs": loop.steps * loop.batch_size / TRIPLETS,
    }


def table_iv(recipe: TrainingRecipe) -> dict[str, Any]:
    policy = recipe.policy
    action = policy.model.action
    assert action is not None
    sizes = {size for _, size in recipe.backbone.cameras}
    (side,) = sizes
    return of_loop(recipe, policy.loop) | {
        "Action chunk horizon H": action.chunk - 1,
        "Image resize": (side, side),
        "Action normalization": "on" if isinstance(policy.action_fit, ByDeviation | ByRange | ByQuantiles) else "off",
        "Data shuffling": shuffled(policy.loop),
        "Training steps": policy.loop.steps,
    }


def paper(name: str) -> TrainingRecipe:
    made = training(name)
    assert isinstance(made, TrainingRecipe)
    return made


@pytest.mark.parametrize("name", COLUMNS)
def test_stage_1_is_table_iii(name: str) -> None:
    assert table_iii(paper(name)) == TABLE_III


@pytest.mark.parametrize(("column", "name"), enumerate(COLUMNS))
def test_stage_2_is_a_column_of_table_iv(column: int, name: str) -> None:
    assert table_iv(paper(name)) == {row: values[column] for row, values in TABLE_IV.items()}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_the_text_says_beside_the_tables(name: str) -> None:
    """Sections III-C to III-E and Algorithm 1."""
    made = paper(name)
    model = made.policy.model
    assert model.motion is not None and isinstance(model.guidance, GuidanceConfig)
    assert made.motion is not None and made.motion.model.motion == model.motion
    assert model.motion.grid[0] * model.motion.grid[1] == 400 and model.motion.horizon == 32
    assert model.motion.token_grid == (32, 10, 10)
    assert model.solver_steps == 10
    assert type(model.hidden_at).__name__ == "Arrival" and type(model.guidance.gate).__name__ == "Sigmoid"
    assert made.motion.backbone == made.policy.backbone == made.backbone
    assert isinstance(made.backbone, Qwen3VLBackboneConfig) and model.token_width == 2560
    assert (made.backbone.model, len(made.backbone.commit or "")) == ("Qwen/Qwen3-VL-4B-Instruct", 40)
    assert isinstance(made.backbone.layer, PreNorm) and made.backbone.prompt == "{instruction}"


def motion_expert_by_hand(values: int) -> int:
    d, head = 1024, 64
    attention = 4 * d * d + 4 * d
    mlp = 8 * d * d + 5 * d
    ada_norms = 2 * (6 * d * d + 6 * d + 2 * d)
    block = attention + mlp + ada_norms + 2 * 2 * head
    inputs = (2560 + 1) * d + (values + 1) * d + (512 + 1) * d + (d + 1) * d
    return inputs + 12 * block + 4 * d + (d + 1) * 2 * d + (d + 1) * values


def action_expert_by_hand(state: int) -> int:
    d = 1024
    block = 12 * d * d + 13 * d
    return 24 * block + (2560 + 1) * d + (7 + 32 + state + 1) * d + 1024 * d + 2 * d + 7 * (d + 1)


GUIDANCE = 1025 * 2560 + 4 * 2560 + 4 * 2561 * 2560 + 1


@pytest.mark.parametrize(
    ("name", "values", "state", "total"),
    [
        ("paper_libero", 12, 11, 643_527_188),
        ("paper_libero_packed", 24, 11, 643_551_776),
        ("paper_simpler", 12, 0, 643_515_924),
        ("paper_real", 12, 10, 643_526_164),
    ],
)
def test_parameter_counts(name: str, values: int, state: int, total: int) -> None:
    made = paper(name)
    expected = {
        "motion_expert": motion_expert_by_hand(values),
        "guidance": GUIDANCE,
        "action_expert": action_expert_by_hand(state),
        "total": total,
    }
    assert expected_parameters(made.policy.model) == expected
    with torch.device("meta"):
        assert LaMP(made.policy.model).parameter_table() == expected


def test_the_packed_recipe_has_half_the_motion_tokens_and_no_other_difference() -> None:
    plain, packed = paper("paper_libero"), paper("paper_libero_packed")
    assert plain.policy.model.motion is not None and packed.policy.model.motion is not None
    assert (plain.policy.model.motion.tokens, packed.policy.model.motion.tokens) == (3200, 1600)
    rows: dict[Callable[[TrainingRecipe], dict[str, Any]], set[str]] = {table_iii: {"Patch size"}, table_iv: set()}
    for table, differing in rows.items():
        ours, theirs = table(packed), table(plain)
        assert {row for row in ours if ours[row] != theirs[row]} == differing


def test_the_defaults_of_the_classes_are_the_papers_sizes() -> None:
    motion, action = MotionExpertConfig(token_width=2560), ActionExpertConfig(token_width=2560)
    assert (motion.width, motion.layers, motion.grid, motion.horizon, motion.patch) == (1024, 12, (20, 20), 32, 2)
    assert action.chunk == 10
