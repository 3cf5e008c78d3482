"""Recipes: each can be built, says everything, and fits together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.model.counting import expected_parameters
from lamp.model.lamp import LaMP
from lamp.recipes import RECIPES, Recipe, recipe
from lamp.train.configs import AllEpisodes

NAMES = tuple(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_json(name: str) -> None:
    made = recipe(name)
    assert made.name == name
    assert from_json(Recipe, json.loads(json.dumps(to_json(made)))) == made


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_of_a_recipe_fit_together(name: str) -> None:
    made = recipe(name)
    assert made.motion.model.motion == made.policy.model.motion
    assert made.without_motion == replace(
        made.policy,
        model=replace(made.policy.model, motion=None, guidance=None),
        cached_hidden_draws=0,
        prior_dropout=0.0,
        prior_on=AllEpisodes(),
    ), "with and without the motion prior differ in nothing else"
    assert made.motion.backbone == made.policy.backbone == made.backbone
    motion = made.motion.model.motion
    assert motion is not None
    assert motion.grid == made.flow.grid
    assert motion.horizon * made.motion.flow_stride <= made.flow.horizon
    assert all(set(planned.task) <= set(made.collect.tasks) for planned in made.evaluations)
    assert made.collect.states[1] <= 30 <= min(int(planned.states.split(":")[0]) for planned in made.evaluations)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_two_ways(name: str) -> None:
    for config in (recipe(name).motion.model, recipe(name).policy.model, recipe(name).without_motion.model):
        with torch.device("meta"):
            model = LaMP(config)
        assert model.parameter_table() == expected_parameters(config)


def test_an_unknown_recipe_is_an_error_that_names_the_others() -> None:
    with pytest.raises(ConfigError, match=r"'demmo'; did you mean 'demo'\? Known: demo, libero_object_small"):
        recipe("demmo")
