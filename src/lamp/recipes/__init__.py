"""Recipes: named functions that return everything an experiment, a training or a measurement needs.

`lamp recipe list` names them and `lamp recipe show NAME` prints one in full. An ablation is a recipe that changes another
with `dataclasses.replace`. A recipe may also be a JSON file: what `lamp recipe fit` wrote, or `lamp recipe show NAME --json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lamp.configuration import from_json
from lamp.errors import ConfigError, DataError, missing, unknown
from lamp.json_files import read_json
from lamp.recipes.ablations import ABLATIONS
from lamp.recipes.kinds import AnyRecipe, ModelRecipe, PretrainingRecipe, Recipe, TrainingRecipe
from lamp.recipes.paper import paper_libero, paper_libero_packed, paper_real, paper_simpler
from lamp.recipes.small import (
    bench_mid,
    bench_mid_fast,
    demo,
    libero_object_motion,
    libero_object_small,
    libero_spatial_small,
)

__all__ = [
    "RECIPES",
    "AnyRecipe",
    "ModelRecipe",
    "PretrainingRecipe",
    "Recipe",
    "TrainingRecipe",
    "experiment",
    "pretraining",
    "recipe",
    "training",
]

Kind = TypeVar("Kind", bound=AnyRecipe)

RECIPES: dict[str, Callable[[], AnyRecipe]] = {
    "demo": demo,
    "libero_object_motion": libero_object_motion,
    "libero_object_small": libero_object_small,
    "libero_spatial_small": libero_spatial_small,
    "paper_libero": paper_libero,
    "paper_libero_packed": paper_libero_packed,
    "paper_simpler": paper_simpler,
    "paper_real": paper_real,
    "bench_mid": bench_mid,
    "bench_mid_fast": bench_mid_fast,
    **ABLATIONS,
}


def recipe(name: str) -> AnyRecipe:
    """Builds a recipe by its name, or reads it from a file.

    Raises:
        ConfigError: There is none of that name, or the file says something that no recipe can.
        DataError: There is no such file, or it is not JSON.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name)
    if path.is_file():
        return from_json(AnyRecipe, read_json(path, "recipe"), where=name)
    if path.is_dir():
        raise DataError(f"{name} is a folder; expected a recipe's JSON file, or a name of `lamp recipe list`.")
    if path.suffix or "/" in name:
        raise missing(
            path, "recipe", "a recipe's JSON file, as `lamp recipe fit` writes it, or a name of `lamp recipe list`"
        )
    raise unknown("recipe", name, RECIPES)


def experiment(name: str) -> Recipe:
    """Builds a recipe that is a whole experiment.

    Raises:
        ConfigError: There is none of that name, or it has no collection and evaluation.
    """
    return _of_kind(name, "a whole experiment", Recipe)


def pretraining(name: str) -> PretrainingRecipe:
    """Builds a recipe of a motion prior that others start from.

    Raises:
        ConfigError: There is none of that name, or it is of another kind.
    """
    return _of_kind(name, "one that pretrains a Motion Expert", PretrainingRecipe)


def training(name: str) -> Recipe | TrainingRecipe:
    """Builds a recipe that can be trained.

    Raises:
        ConfigError: There is none of that name, or it is a model alone.
    """
    return _of_kind(name, "one with training", Recipe, TrainingRecipe)


def _of_kind(name: str, wanted: str, *kinds: type[Kind]) -> Kind:
    made = recipe(name)
    if isinstance(made, kinds):
        return made
    fitting = ", ".join(name for name in RECIPES if isinstance(recipe(name), kinds))
    raise ConfigError(f"recipe {made.name!r} is a {type(made).__name__}; expected {wanted}: {fitting}.")
