"""Recipes: each can be built, says everything, and fits together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.model.lamp import LaMP
from lamp.model.motion_expert import ImageFlow
from lamp.model.motion_fusion import AddFusion, ConcatFusion
from lamp.model.parameter_count import expected_parameters
from lamp.recipes import RECIPES, ModelRecipe, Recipe, TrainingRecipe, experiment, recipe, training
from lamp.recipes.ablations import ABLATIONS, VARIANTS, base_recipe
from lamp.train.config import AllEpisodes

NAMES = tuple(RECIPES)
EXPERIMENTS = tuple(name for name in NAMES if isinstance(recipe(name), Recipe))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_json(name: str) -> None:
    made = recipe(name)
    assert made.name == name
    assert from_json(type(made), json.loads(json.dumps(to_json(made)))) == made


def test_the_small_experiments_have_the_model_that_was_measured() -> None:
    """Long measurements stand behind these names."""
    for name in ("libero_object_small", "libero_spatial_small"):
        counts = {part: expected_parameters(model) for part, model in experiment(name).models.items()}
        assert counts == {
            "motion": {"motion_expert": 2_920_032, "total": 2_920_032},
            "policy": {"motion_expert": 2_920_032, "guidance": 720_401, "action_expert": 1_929_415, "total": 5_569_848},
            "without_motion": {"action_expert": 1_929_415, "total": 1_929_415},
        }


def test_the_variants_have_the_demo_s_policy() -> None:
    base, demo, whole = base_recipe(), experiment("demo"), experiment("libero_object_small")
    assert base.policy.model == demo.policy.model
    assert replace(base, policy=whole.policy, without_motion=whole.without_motion) == whole


def test_a_prior_of_ones_own_is_not_leant_on() -> None:
    demo, other = experiment("demo"), experiment("libero_object_small")
    assert demo.prior == "pretrained/libero_object" and demo.policy_with(demo.prior) == demo.policy
    assert (demo.policy.prior_dropout, demo.policy_with("runs/motion").prior_dropout) == (0.0, 0.5)
    assert other.policy_with("runs/motion") == other.policy
    assert training("paper_libero").policy_with("runs/motion") == training("paper_libero").policy


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_stages_of_an_experiment_fit_together(name: str) -> None:
    made = experiment(name)
    assert made.motion.model.motion == made.policy.model.motion
    assert made.without_motion == replace(
        made.policy,
        model=replace(made.policy.model, motion=None, guidance=None),
        cached_hidden_draws=0,
        prior_dropout=0.0,
        prior_from=0.0,
        prior_on=AllEpisodes(),
    ), "with and without the motion prior differ in nothing else"
    assert made.motion.backbone == made.policy.backbone == made.backbone
    motion = made.motion.model.motion
    assert motion is not None
    assert motion.grid == made.flow.grid
    assert motion.horizon * made.motion.flow_stride <= made.flow.horizon
    known = set(made.collect.tasks)
    for planned in made.evaluations:
        new = set(planned.task) - known
        assert not new or (made.prior is not None and new == set(made.new_tasks) == set(planned.task))
        assert not new or "replay" not in planned.controls, "no demonstration of theirs can be replayed"
    assert made.collect.states[1] <= 30 <= min(int(planned.states.split(":")[0]) for planned in made.evaluations)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_two_ways(name: str) -> None:
    for config in recipe(name).models.values():
        with torch.device("meta"):
            model = LaMP(config)
        assert model.parameter_table() == expected_parameters(config)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_one_thing_of_its_base(name: str) -> None:
    """Data, optimiser and evaluation stay; of the model, at most the named part differs, and in Stage 1 alike."""
    base, made = base_recipe(), experiment(f"small_{name}")
    unchanged = {"name": base.name, "summary": base.summary}
    models = {
        "motion": replace(made.motion, model=base.motion.model),
        "policy": replace(made.policy, model=base.policy.model),
        "without_motion": replace(made.without_motion, model=base.without_motion.model),
    }
    assert replace(made, **unchanged, **models) == base
    parts = ("motion", "guidance", "action", "pooling", "action_noise_std")
    parts += ("solver_steps", "hidden_at", "motion_tau", "action_tau")
    ours, theirs = made.policy.model, base.policy.model
    differing = [part for part in parts if getattr(ours, part) != getattr(theirs, part)]
    as_by_default = {"gated", "gate_zero_out", "arrival", "joint_tokens", "tau_beta"}
    assert len(differing) == (0 if name in as_by_default else 1), differing


def test_the_resized_recipes_see_the_same_part_of_the_future() -> None:
    base = experiment("libero_object_small")
    for name, grid, horizon in (("small_grid_10x10", (10, 10), 8), ("small_horizon_16", (20, 20), 16)):
        made = experiment(name)
        motion = made.policy.model.motion
        assert motion is not None and (motion.grid, motion.horizon) == (grid, horizon)
        assert motion.reference is not None
        assert (motion.reference.grid, motion.reference.horizon) == ((20, 20), 8)
        assert made.flow.horizon * made.flow.stride == base.flow.horizon * base.flow.stride == 32
        assert motion.reference.pace * base.flow.stride == made.flow.stride


def test_the_papers_ablations_are_there_at_full_size() -> None:
    base, made = training("paper_simpler"), {}
    for name in ("no_motion", "flow_2d", "add", "concat_mlp"):
        made[name] = training(f"paper_simpler_{name}")
        assert made[name].policy.loop == base.policy.loop
        assert made[name].policy.model.action == base.policy.model.action
    assert made["no_motion"].motion is None and made["no_motion"].policy == base.without_motion
    for stage in (made["flow_2d"].motion, made["flow_2d"].policy):
        assert stage.model.motion.flow == ImageFlow()
    assert made["add"].policy.model.guidance == AddFusion()
    assert made["concat_mlp"].policy.model.guidance == ConcatFusion()
    assert made["add"].motion == made["concat_mlp"].motion == base.motion


def test_the_benchmarks_models() -> None:
    mid, fast = recipe("bench_mid"), recipe("bench_mid_fast")
    assert isinstance(mid, ModelRecipe) and isinstance(fast, ModelRecipe)
    for made, where, attention in ((mid, "Arrival", "Joint"), (fast, "Departure", "Prefix")):
        motion, action = made.model.motion, made.model.action
        assert motion is not None and action is not None
        assert (motion.layers, motion.width, motion.heads) == (6, 384, 6)
        assert (motion.grid, motion.horizon, motion.frames_per_token, motion.tokens) == ((20, 20), 32, 2, 1600)
        assert (action.layers, action.width, action.heads, action.chunk) == (8, 384, 6, 10)
        assert (made.model.token_width, made.tokens) == (512, 160)
        assert action.positions >= action.chunk + made.tokens
        assert type(made.model.hidden_at).__name__ == where and type(action.attention).__name__ == attention
    assert expected_parameters(mid.model) == expected_parameters(fast.model)


def test_an_unknown_recipe_is_an_error_that_names_the_others() -> None:
    with pytest.raises(ConfigError, match=r"'demmo'; did you mean 'demo'\? Known: demo, libero_object_motion, "):
        recipe("demmo")


def test_a_recipe_of_another_kind_is_an_error_that_names_the_fitting_ones() -> None:
    with pytest.raises(ConfigError, match="'paper_real' is a TrainingRecipe; expected a whole experiment: demo, "):
        experiment("paper_real")
    with pytest.raises(ConfigError, match=r"'bench_mid' is a ModelRecipe; expected one with training: .*paper_real"):
        training("bench_mid")
    assert isinstance(training("small_no_motion"), TrainingRecipe)
    assert ABLATIONS.keys() <= RECIPES.keys()
