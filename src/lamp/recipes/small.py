"""LaMP on the embedded backbone: recipes that a laptop runs from collection to evaluation.

Beside them, models of a middling size, to measure how fast they are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lamp.benchmark.evaluate import EvaluateConfig
from lamp.collect.collect import CollectConfig
from lamp.data.normalizers import ByDeviation
from lamp.flow_matching import Preconditioning
from lamp.model.action_expert import ActionExpertConfig, Joint, Prefix
from lamp.model.guidance import GuidanceConfig, ZeroOut
from lamp.model.lamp import Arrival, Departure, LaMPConfig, required
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.small import SmallBackboneConfig
from lamp.model.token_pooling import TokenPooling
from lamp.recipes.kinds import ModelRecipe, PretrainingRecipe, Recipe, without_motion
from lamp.sceneflow.build import FlowBuildConfig
from lamp.train.config import BFloat16, LoopConfig, MotionTraining, PolicyTraining
from lamp.train.optimizer import AdamW

HERE = Path(".")
"""Stands for a folder that is filled in when the experiment runs."""

SMALL_TOKENS = 400
"""Width of the embedded backbone's tokens."""

SMALL_BACKBONE = SmallBackboneConfig(cameras=(("agentview", 160), ("wrist", 128)), text_tokens=24)
"""The agentview's 10x10 tokens are the 2x2 patches of the 20x20 scene-flow grid."""

SMALL_MOTION_STD = (0.08, 0.08, 0.08)
"""Standard deviation of normalised increments, still points included (`lamp flow build` prints the bounds behind them)."""


def demo() -> Recipe:
    """Eight demonstrations of each of seven tasks of LIBERO-Object, and the Motion Expert that comes with LaMP, which has seen
    all ten tasks move, without actions: policies with and without it are put to the other three. `make demo`, one seed of the
    study `pretrained-new-tasks`."""
    seen, unseen = tuple(range(7)), (7, 8, 9)
    evaluation = EvaluateConfig(
        suite="libero_object",
        task=unseen,
        states="30:44",
        placement_shift=0.04,
        controls=("zero",),
        render="fast",
        videos=2,
        out=Path("evaluation_motion_only"),
    )
    recipe = small(
        name="demo",
        summary="LIBERO-Object: 8 demonstrations of each of tasks 0 to 6, and a motion prior that has seen all ten tasks move; "
        "put to tasks 7 to 9, whose actions nobody showed; objects displaced by up to 4 cm; minutes on 2 cores",
        collect=replace(small_collection("libero_object", seen, episodes=8, shift=0.04), states=(0, 8)),
        motion_loop=small_loop(steps=240, lr=1.2e-3, seed=1, threads=1),
        policy_loop=small_loop(steps=1200, lr=1.5e-3, seed=2, threads=1),
        evaluations=(
            replace(evaluation, task=seen, states="30:32", controls=("replay",), out=Path("evaluation_with_actions")),
            evaluation,
        ),
    )
    policy = replace(for_few_demonstrations(recipe.policy), prior_dropout=0.0)
    return replace(
        recipe,
        motion=replace(recipe.motion, final_samples=64),
        policy=policy,
        without_motion=without_motion(policy),
        prior="pretrained/libero_object",
    )


def for_few_demonstrations(policy: PolicyTraining) -> PolicyTraining:
    """The policy that learns most in a few minutes of one core: a narrow Action Expert on pooled tokens, whose steps take less
    than a quarter of the time, and which acts from the middle of the noise (EXPERIMENTS.md)."""
    action = required(policy.model.action, "Action Expert")
    model = replace(
        policy.model,
        action=replace(action, width=128, layers=3),
        action_noise_std=0.0,
        pooling=TokenPooling(grids=SMALL_BACKBONE.grids),
    )
    loop = replace(policy.loop, batch_size=32, optimiser=AdamW(lr=1.5e-3), ema=0.99)
    return replace(policy, model=model, loop=loop, noise_draws=2)


def libero_object_motion() -> PretrainingRecipe:
    """The motion prior that comes with LaMP: all ten tasks of LIBERO-Object with displaced objects, in motion alone."""
    collect = small_collection("libero_object", (), episodes=8, shift=0.04)
    like = small(
        name="", summary="", collect=collect, motion_loop=small_loop(steps=1500, lr=1e-3, seed=1, threads=1), evaluations=(),
        policy_loop=small_loop(steps=1, lr=1e-3, seed=1),
    )  # fmt: skip
    return PretrainingRecipe(
        name="libero_object_motion",
        summary="the Motion Expert that comes with LaMP (pretrained/libero_object): ten tasks of LIBERO-Object, 8 episodes "
        "each without actions, from initial states that demonstrations of the demo do not have",
        collect=replace(collect, states=(10, 30), motion_only=True, seed=7),
        flow=like.flow,
        backbone=like.backbone,
        motion=like.motion,
    )


def libero_object_small() -> Recipe:
    """Three tasks of LIBERO-Object, 60 demonstrations each with shifted objects; about two hours on 2 cores."""
    return small_study("libero_object", (0, 1, 5), episodes=60, policy_steps=6000, shift=0.04)


def libero_spatial_small() -> Recipe:
    """The two tasks of LIBERO-Spatial that share a scene: one black bowl on the stove, one on the cabinet, and the instruction
    alone says which. In the other eight, where the bowls are gives the task away (EXPERIMENTS.md)."""
    return small_study("libero_spatial", (7, 9), episodes=50, policy_steps=4000, shift=0.0)


def small_study(suite: str, tasks: tuple[int, ...], *, episodes: int, policy_steps: int, shift: float) -> Recipe:
    """A study that two cores can do: both policies, and where objects are shifted, standard initial states beside shifted
    ones; 51 episodes a task and condition."""
    evaluation = EvaluateConfig(
        suite=suite,
        task=tasks,
        states="30:47",
        episodes_per_state=3,
        controls=("replay", "zero", "wrong_instruction"),
        render="fast",
        videos=3,
        out=Path("evaluation_standard"),
    )
    evaluations = (evaluation,)
    if shift > 0:
        evaluations += (replace(evaluation, placement_shift=shift, out=Path("evaluation_shifted")),)
    numbers = ", ".join(map(str, tasks))
    return small(
        name=f"{suite}_small",
        summary=f"{suite} tasks {numbers}, {episodes} demonstrations each"
        + (f", objects shifted by up to {shift} m" if shift else ""),
        collect=small_collection(suite, tasks, episodes=episodes, shift=shift),
        motion_loop=small_loop(steps=1500, lr=1e-3, seed=1, threads=1),
        policy_loop=replace(
            small_loop(steps=policy_steps, batch_size=16, lr=6e-4, seed=2, threads=1), validate_every=1000
        ),
        evaluations=evaluations,
        prior_from=0.5,
    )


def small(
    *,
    name: str,
    summary: str,
    collect: CollectConfig,
    motion_loop: LoopConfig,
    policy_loop: LoopConfig,
    evaluations: tuple[EvaluateConfig, ...],
    prior_from: float = 0.0,
) -> Recipe:
    """LaMP on the embedded backbone: 2 to 3 million parameters an expert, scene flow of 20x20 points over 32 frames."""
    motion = small_motion()
    guided = PolicyTraining(
        model=LaMPConfig(
            token_width=SMALL_TOKENS, motion=motion, guidance=small_guidance(motion), action=small_action()
        ),
        backbone=SMALL_BACKBONE,
        loop=policy_loop,
        execute=8,
        noise_draws=6,
        cached_hidden_draws=2,
        state_noise=0.1,
        token_dropout=0.3,
        # A prior that is always there is leant on, and the policy does not learn to look closely (EXPERIMENTS.md).
        prior_dropout=0.5,
        prior_from=prior_from,
        action_fit=ByDeviation(least=0.2),
    )
    return Recipe(
        name=name,
        summary=summary,
        collect=collect,
        flow=FlowBuildConfig(data=HERE, stride=4, horizon=8),
        backbone=SMALL_BACKBONE,
        motion=MotionTraining(
            model=LaMPConfig(token_width=SMALL_TOKENS, motion=motion, guidance=None, action=None),
            backbone=SMALL_BACKBONE,
            loop=motion_loop,
            token_dropout=0.3,
        ),
        policy=guided,
        without_motion=without_motion(guided),
        evaluations=evaluations,
    )


def small_collection(suite: str, tasks: tuple[int, ...], *, episodes: int, shift: float) -> CollectConfig:
    """Noisy demonstrations, rendered fast at every second step."""
    return CollectConfig(
        suite=suite,
        task=tasks,
        episodes=episodes,
        out=HERE,
        placement_shift=shift,
        perturbation_probability=0.5,
        fumble_probability=0.5,
        render="fast",
        render_every=2,
    )


def small_motion() -> MotionExpertConfig:
    """20x20 points, every 4th of 32 frames; all eight steps of a 2x2 patch make one token: 100 tokens."""
    return MotionExpertConfig(
        token_width=SMALL_TOKENS,
        width=192,
        layers=3,
        heads=4,
        horizon=8,
        frames_per_token=8,
        time_channels=128,
        preconditioning=Preconditioning(data_std=SMALL_MOTION_STD),
    )


def small_guidance(motion: MotionExpertConfig) -> GuidanceConfig:
    """Eq. 4 at the embedded backbone's width, starting from no injection: with few demonstrations, a gate that begins half
    open lets the policy learn the noise in z_m by heart."""
    return GuidanceConfig(token_width=SMALL_TOKENS, motion_width=motion.width, heads=8, dropout=0.0, gate=ZeroOut())


def small_action() -> ActionExpertConfig:
    """Twelve actions; the context is computed once for all solver steps and noise draws."""
    return ActionExpertConfig(
        token_width=SMALL_TOKENS,
        width=192,
        layers=4,
        heads=4,
        chunk=12,
        state_dim=11,
        attention=Prefix(context_layers=1),
        positions=320,
    )


def small_loop(*, steps: int, lr: float, seed: int, batch_size: int = 32, threads: int = 2) -> LoopConfig:
    """The optimiser of the small recipes."""
    return LoopConfig(
        steps=steps,
        batch_size=batch_size,
        optimiser=AdamW(lr=lr),
        precision=BFloat16(),
        ema=0.995,
        checkpoint_every=500,
        validate_every=300,
        log_every=20,
        seed=seed,
        threads=threads,
    )


def bench_mid() -> ModelRecipe:
    """The release's arrangement."""
    return _bench(
        name="bench_mid",
        summary="384 wide, 6 and 8 layers, 1600 motion tokens; z_m at arrival, joint attention",
        attention=Joint(),
        hidden_at=Arrival(),
    )


def bench_mid_fast() -> ModelRecipe:
    """The same sizes with one evaluation of the Motion Expert, and a context that is computed once."""
    return _bench(
        name="bench_mid_fast",
        summary="bench_mid with z_m at departure and prefix attention",
        attention=Prefix(),
        hidden_at=Departure(),
    )


def _bench(*, name: str, summary: str, attention: Joint | Prefix, hidden_at: Arrival | Departure) -> ModelRecipe:
    token_width, width, heads = 512, 384, 6
    model = LaMPConfig(
        token_width=token_width,
        motion=MotionExpertConfig(token_width=token_width, width=width, layers=6, heads=heads),
        guidance=GuidanceConfig(token_width=token_width, motion_width=width, heads=8),
        action=ActionExpertConfig(
            token_width=token_width, width=width, layers=8, heads=heads, chunk=10, attention=attention
        ),
        hidden_at=hidden_at,
    )
    return ModelRecipe(name=name, summary=summary, model=model, tokens=160)
