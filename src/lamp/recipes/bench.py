"""Models of a middling size, to measure how fast they are."""

from __future__ import annotations

from dataclasses import replace

from lamp.model.action_expert import ActionExpertConfig, Joint, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import Arrival, Departure, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.recipes.kinds import ModelRecipe

TOKEN_WIDTH, TOKENS = 512, 160


def bench_mid() -> ModelRecipe:
    """The release's arrangement."""
    width, heads = 384, 6
    model = LaMPConfig(
        token_width=TOKEN_WIDTH,
        motion=MotionExpertConfig(token_width=TOKEN_WIDTH, width=width, layers=6, heads=heads),
        guidance=GuidanceConfig(token_width=TOKEN_WIDTH, motion_width=width, heads=8),
        action=ActionExpertConfig(
            token_width=TOKEN_WIDTH, width=width, layers=8, heads=heads, chunk=10, attention=Joint()
        ),
        hidden_at=Arrival(),
    )
    return ModelRecipe(
        name="bench_mid",
        summary="384 wide, 6 and 8 layers, 1600 motion tokens; z_m at arrival, joint attention",
        model=model,
        tokens=TOKENS,
    )


def bench_mid_fast() -> ModelRecipe:
    """The same sizes with one evaluation of the Motion Expert, and a context that is computed once."""
    recipe = bench_mid()
    assert recipe.model.action is not None
    action = replace(recipe.model.action, attention=Prefix())
    return replace(
        recipe,
        name="bench_mid_fast",
        summary="bench_mid with z_m at departure and prefix attention",
        model=replace(recipe.model, action=action, hidden_at=Departure()),
    )
