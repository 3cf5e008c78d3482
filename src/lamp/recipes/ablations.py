"""Every variant of the model as a recipe: the paper's ablations (Section IV-B) and the options where it is silent.

Each changes one thing of `libero_object_small` with the demo's policy (`base_recipe`), and can be trained on that recipe's data;
the paper's four ablations are there at full size as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lamp.flow_matching import Beta, LiteralBeta, Uniform
from lamp.model.action_expert import Joint, Prefix, RidgeBaseline
from lamp.model.guidance import Sigmoid, Tanh, ZeroOut
from lamp.model.lamp import Arrival, Departure, LaMPConfig
from lamp.model.motion_expert import AdaLNPooled, ImageFlow, JointTokens
from lamp.model.motion_fusion import AddFusion, ConcatFusion, FlowHead, PathFusion, TokenFusion
from lamp.recipes.kinds import AnyRecipe, Recipe, TrainingRecipe, without_motion
from lamp.recipes.paper import paper_simpler
from lamp.recipes.small import for_few_demonstrations, libero_object_small
from lamp.train.resize_checkpoint import resized

Change = Callable[[LaMPConfig], LaMPConfig]
"""What a variant makes of a model; Stage 1's has neither guidance nor Action Expert, and the policy without motion no Motion
Expert."""


def model(**changes: Any) -> Change:
    """Changes how time runs."""
    return lambda config: replace(config, **changes)


def policy(**changes: Any) -> Change:
    """Changes what Stage 2 alone has."""
    return lambda config: replace(config, **changes) if config.action else config


def motion(**changes: Any) -> Change:
    """Changes the Motion Expert."""
    return lambda config: replace(config, motion=replace(config.motion, **changes)) if config.motion else config


def action(**changes: Any) -> Change:
    """Changes the Action Expert."""
    return lambda config: replace(config, action=replace(config.action, **changes)) if config.action else config


def guidance(**changes: Any) -> Change:
    """Changes the gated guidance."""
    return lambda config: replace(config, guidance=replace(config.guidance, **changes)) if config.guidance else config


def fusion(kind: type[AddFusion | ConcatFusion | TokenFusion], **more: Any) -> Change:
    """Replaces the gated guidance."""

    def change(config: LaMPConfig) -> LaMPConfig:
        if config.guidance is None or config.motion is None:
            return config
        return replace(config, guidance=kind(motion_width=config.motion.width, heads=config.motion.heads, **more))

    return change


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing that is different."""

    summary: str
    change: Change


VARIANTS: dict[str, Variant] = {
    "flow_2d": Variant(summary="2-D flow: no depth in loss, noise and input", change=motion(flow=ImageFlow())),
    "gated": Variant(summary="gated cross-attention (Eq. 4), as it is by default", change=guidance()),
    "add": Variant(summary="z_m added to the action tokens at every layer", change=fusion(AddFusion)),
    "concat_mlp": Variant(summary="z_m joined to the action tokens by a two-layer MLP", change=fusion(ConcatFusion)),
    "tokens": Variant(
        summary="z_m pooled to eight context tokens of the Action Expert, beside z", change=fusion(TokenFusion)
    ),
    "tokens_all": Variant(
        summary="every token of z_m a context token of the Action Expert, beside z",
        change=fusion(TokenFusion, tokens=None),
    ),
    "path": Variant(
        summary="a decoded path (one evaluation of the Motion Expert) as context tokens, with noise in training",
        change=lambda config: replace(config, guidance=PathFusion()) if config.guidance and config.motion else config,
    ),
    "gate_sigmoid": Variant(summary="gate sigma(g), half open at first (Eq. 4)", change=guidance(gate=Sigmoid())),
    "gate_tanh": Variant(summary="gate tanh(g), closed at first", change=guidance(gate=Tanh())),
    "gate_zero_out": Variant(summary="gate sigma(g), output projection zero at first", change=guidance(gate=ZeroOut())),
    "arrival": Variant(summary="z_m where the first solver step lands", change=model(hidden_at=Arrival())),
    "departure": Variant(summary="z_m where the first solver step starts", change=model(hidden_at=Departure())),
    "layer_1": Variant(summary="z_m from the first of three blocks", change=motion(hidden_layer=0)),
    "layer_2": Variant(summary="z_m from the second of three blocks", change=motion(hidden_layer=1)),
    "frames_1": Variant(summary="one flow step a motion token", change=motion(frames_per_token=1)),
    "frames_2": Variant(summary="two flow steps a motion token", change=motion(frames_per_token=2)),
    "joint_tokens": Variant(summary="z_t attends jointly with the motion", change=motion(conditioning=JointTokens())),
    "adaln_pooled": Variant(summary="time and pooled z_t drive AdaLN", change=motion(conditioning=AdaLNPooled())),
    "joint": Variant(summary="actions and context see each other", change=action(attention=Joint())),
    "prefix": Variant(summary="the context does not see the actions", change=action(attention=Prefix())),
    "ridge": Variant(
        summary="the Action Expert starts at a ridge regression of the actions on the state",
        change=action(baseline=RidgeBaseline()),
    ),
    "all_tokens": Variant(summary="guidance and Action Expert read every token of z", change=policy(pooling=None)),
    "from_noise": Variant(
        summary="actions start from noise where the policy acts, as in Algorithm 2", change=policy(action_noise_std=1.0)
    ),
    "wide": Variant(summary="the Action Expert 192 wide, with four layers", change=action(width=192, layers=4)),
    "t_1": Variant(summary="the Action Expert sees t_1", change=action(sees_t_1=True)),
    "tau_beta": Variant(summary="noise level of actions ~ Beta(1.5, 1)", change=model(action_tau=Beta())),
    "tau_literal": Variant(
        summary="tau of actions ~ Beta(1.5, 1), to the letter", change=model(action_tau=LiteralBeta())
    ),
    "tau_uniform": Variant(summary="tau of actions uniform", change=model(action_tau=Uniform())),
    "motion_tau_beta": Variant(summary="noise level of motion ~ Beta(1.5, 1)", change=model(motion_tau=Beta())),
    "solver_5": Variant(summary="five solver steps", change=model(solver_steps=5)),
    "solver_20": Variant(summary="twenty solver steps", change=model(solver_steps=20)),
}


def base_recipe() -> Recipe:
    """`libero_object_small` with the policy that learns most in little time, so that many variants can be compared."""
    whole = libero_object_small()
    policy = for_few_demonstrations(whole.policy)
    return replace(whole, policy=policy, without_motion=without_motion(policy))


PAPERS = ("flow_2d", "add", "concat_mlp")
"""Section IV-B, beside No-Motion."""


def small_variant(name: str) -> Recipe:
    """Returns `libero_object_small` with one thing changed."""
    base, variant = base_recipe(), VARIANTS[name]
    return replace(
        base,
        name=f"small_{name}",
        summary=f"{base.name} with: {variant.summary}",
        motion=replace(base.motion, model=variant.change(base.motion.model)),
        policy=replace(base.policy, model=variant.change(base.policy.model)),
        without_motion=replace(base.without_motion, model=variant.change(base.without_motion.model)),
    )


def small_no_motion() -> TrainingRecipe:
    """The policy alone; a whole experiment trains it beside the guided one anyway."""
    base = base_recipe()
    return TrainingRecipe(
        name="small_no_motion",
        summary=f"{base.name} without the motion prior",
        motion=None,
        policy=base.without_motion,
    )


def small_flow_head() -> TrainingRecipe:
    """No Motion Expert: the policy learns to predict the scene flow along, and acts without that."""
    base = base_recipe()
    motion, policy = base.policy.model.motion, base.without_motion
    assert motion is not None
    std = motion.preconditioning.data_std if motion.preconditioning else (1.0, 1.0, 1.0)
    head = FlowHead(grid=motion.grid, horizon=motion.horizon, patch=motion.patch, data_std=(std[0], std[1], std[2]))
    return TrainingRecipe(
        name="small_flow_head",
        summary=f"{base.name} without a Motion Expert: a head of the policy predicts the scene flow in training only",
        motion=None,
        policy=replace(policy, model=replace(policy.model, guidance=head)),
    )


def resized_variant(
    name: str, what: str, *, grid: tuple[int, int] = (20, 20), horizon: int = 8, pace: float = 1.0
) -> Recipe:
    """Returns `libero_object_small` with another grid or horizon: Stage 1 can be trained, or carried over."""
    base = base_recipe()

    def change(config: LaMPConfig) -> LaMPConfig:
        if config.motion is None:
            return config
        return replace(config, motion=resized(config.motion, grid=grid, horizon=horizon, pace=pace))

    return replace(
        base,
        name=f"small_{name}",
        summary=f"{base.name} with: {what}",
        flow=replace(base.flow, grid=grid, horizon=horizon, stride=round(base.flow.stride * pace)),
        motion=replace(base.motion, model=change(base.motion.model)),
        policy=replace(base.policy, model=change(base.policy.model)),
    )


def paper_variant(name: str) -> TrainingRecipe:
    """Returns `paper_simpler` with one thing changed."""
    base, variant = paper_simpler(), VARIANTS[name]
    return replace(
        base,
        name=f"{base.name}_{name}",
        summary=f"{base.summary}, with: {variant.summary}",
        motion=base.motion and replace(base.motion, model=variant.change(base.motion.model)),
        policy=replace(base.policy, model=variant.change(base.policy.model)),
    )


def paper_simpler_no_motion() -> TrainingRecipe:
    """The policy alone, at full size."""
    base = paper_simpler()
    return replace(
        base,
        name="paper_simpler_no_motion",
        summary=f"{base.summary}, without the motion prior",
        motion=None,
        policy=without_motion(base.policy),
    )


ABLATIONS: dict[str, Callable[[], AnyRecipe]] = {
    "small_no_motion": small_no_motion,
    "small_flow_head": small_flow_head,
    **{f"small_{name}": partial(small_variant, name) for name in VARIANTS},
    # A quarter of the points, at the coordinates that they have on 20x20.
    "small_grid_10x10": partial(resized_variant, "grid_10x10", "10x10 points", grid=(10, 10)),
    # Twice as many flow steps, half as long each.
    "small_horizon_16": partial(resized_variant, "horizon_16", "16 flow steps of 2 frames", horizon=16, pace=0.5),
    "paper_simpler_no_motion": paper_simpler_no_motion,
    **{f"paper_simpler_{name}": partial(paper_variant, name) for name in PAPERS},
}
