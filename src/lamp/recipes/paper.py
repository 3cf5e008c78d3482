"""The paper's own settings at full size: Table III for Stage 1, the columns of Table IV for Stage 2.

What the tables leave open is what the classes have by default, or is said here.
"""

from __future__ import annotations

from dataclasses import replace

from lamp.data.normalizers import ByRange, ContinuousRotation, NoState, StateTransform
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.qwen3_vl import PreNorm, Qwen3VLBackboneConfig
from lamp.model.qwen_processor import BARE_PROMPT
from lamp.recipes.kinds import TrainingRecipe
from lamp.train.config import BFloat16, LoopConfig, MotionTraining, PolicyTraining
from lamp.train.optimizer import AdamW

VLM, COMMIT = "Qwen/Qwen3-VL-4B-Instruct", "ebb281ec70b05090aa6165b016eac8ec08e71b17"
"""The backbone on the hub; the commit is the one that the authors' code asks for."""
TOKEN_WIDTH = 2560
"""Width of Qwen3-VL-4B's tokens."""
IMAGE_PX = 224
GPUS, BATCH_PER_GPU = 16, 32
TRIPLETS, EPOCHS = 1_600_000, 30
"""Observation-language-motion triplets of Stage 1, and how often each is seen."""


def paper_libero() -> TrainingRecipe:
    """LIBERO: two cameras; all ten actions of a chunk are executed, as in the authors' evaluation."""
    return paper(
        name="paper_libero",
        benchmark="LIBERO",
        cameras=("agentview", "wrist"),
        action=action_expert(chunk=10, state_dim=11),
        execute=10,
        steps=15_000,
        lr=1e-4,
    )


def paper_libero_packed() -> TrainingRecipe:
    """LIBERO with half as many motion tokens, two flow steps each, as the authors' code packs them."""
    recipe, motion = paper_libero(), replace(motion_expert(), frames_per_token=2)
    return replace(
        recipe,
        name="paper_libero_packed",
        summary=f"{recipe.summary}; two flow steps a motion token, as in the authors' code",
        motion=recipe.motion and replace(recipe.motion, model=replace(recipe.motion.model, motion=motion)),
        policy=replace(recipe.policy, model=replace(recipe.policy.model, motion=motion)),
    )


def paper_simpler() -> TrainingRecipe:
    """SimplerEnv-WidowX: one camera, no proprioception; the policy is asked at every step."""
    return paper(
        name="paper_simpler",
        benchmark="SimplerEnv-WidowX",
        cameras=("front",),
        action=action_expert(chunk=30, state_dim=0),
        state_transform=NoState(),
        execute=1,
        steps=15_000,
        lr=1e-4,
    )


def paper_real() -> TrainingRecipe:
    """The real robot: one camera; the state is the hand's pose (position and axis-angle) and the gripper."""
    return paper(
        name="paper_real",
        benchmark="the real robot",
        cameras=("front",),
        action=action_expert(chunk=16, state_dim=10),
        execute=16,
        steps=20_000,
        lr=2e-4,
    )


def paper(
    *,
    name: str,
    benchmark: str,
    cameras: tuple[str, ...],
    action: ActionExpertConfig,
    execute: int,
    steps: int,
    lr: float,
    state_transform: StateTransform | None = None,
) -> TrainingRecipe:
    """One column of Table IV, and Table III before it."""
    seen, motion = backbone(cameras), motion_expert()
    return TrainingRecipe(
        name=name,
        summary=f"the paper at full size on {benchmark} (Tables III and IV)",
        gpus=GPUS,
        motion=MotionTraining(
            model=LaMPConfig(token_width=TOKEN_WIDTH, motion=motion, guidance=None, action=None),
            backbone=seen,
            loop=loop(steps=EPOCHS * TRIPLETS // (GPUS * BATCH_PER_GPU), optimiser=AdamW(lr=2e-4, weight_decay=1e-8)),
        ),
        policy=PolicyTraining(
            model=LaMPConfig(
                token_width=TOKEN_WIDTH, motion=motion, guidance=GuidanceConfig(token_width=TOKEN_WIDTH), action=action
            ),
            backbone=seen,
            loop=loop(steps=steps, optimiser=AdamW(lr=lr, weight_decay=0.0)),
            execute=execute,
            state_transform=state_transform or ContinuousRotation(),
            state_fit=ByRange(),
            action_fit=ByRange(),
        ),
    )


def backbone(cameras: tuple[str, ...]) -> Qwen3VLBackboneConfig:
    """The frozen vision-language model of all full-size recipes: found when a training starts, not before."""
    return Qwen3VLBackboneConfig(
        model=VLM,
        commit=COMMIT,
        cameras=tuple((camera, IMAGE_PX) for camera in cameras),
        prompt=BARE_PROMPT,
        layer=PreNorm(),
    )


def motion_expert() -> MotionExpertConfig:
    """Table III: 20x20 points over 32 steps, patches of 1x2x2 (steps, rows, columns): 3200 tokens."""
    return MotionExpertConfig(
        token_width=TOKEN_WIDTH, width=1024, layers=12, grid=(20, 20), horizon=32, patch=2, frames_per_token=1
    )


def action_expert(*, chunk: int, state_dim: int) -> ActionExpertConfig:
    """As the authors' code has it, 24 layers x 1024 with dropout; `chunk` is H + 1 of Table IV."""
    return ActionExpertConfig(token_width=TOKEN_WIDTH, chunk=chunk, state_dim=state_dim, dropout=0.1)


def loop(*, steps: int, optimiser: AdamW) -> LoopConfig:
    """What both tables share: a cosine to a least learning rate without warm-up, bfloat16, 512 samples a step."""
    return LoopConfig(
        steps=steps,
        batch_size=GPUS * BATCH_PER_GPU,
        optimiser=optimiser,
        precision=BFloat16(),
        device="cuda",
        log_every=50,
        checkpoint_every=1000,
        validate_every=1000,
    )
