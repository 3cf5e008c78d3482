"""Commands about recipes, and the demo that runs one from nothing to a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from lamp.commands.command import Command, experiment_named, training_named
from lamp.flags import parse


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Runs a recipe from nothing to a report: collect, scene flow, both stages, evaluation; an interrupted run goes on."""

    out: Path | None = None
    """The folder of everything; by default outputs/demo, with --quick outputs/demo-quick, of another recipe outputs/RECIPE."""
    recipe: str = "demo"
    """A name that `lamp recipe list` shows, or a recipe's file."""
    quick: bool = False
    """A few minutes: whether everything works here. Too small for its figures to mean anything."""


def _demo(arguments: Sequence[str]) -> None:
    flags = parse(DemoFlags, arguments, "demo")
    from lamp.experiment import run

    recipe = experiment_named(flags.recipe)
    folder = Path(flags.recipe).stem + ("-quick" if flags.quick else "")
    run(recipe, flags.out or Path("outputs") / folder, named=flags.recipe, quickly=flags.quick)


def _twin_demo(arguments: Sequence[str]) -> None:
    from lamp.twin_demo import TwinDemo, run

    run(parse(TwinDemo, arguments, "twin-demo"))


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Lists the recipes, each with what it is for."""


def _recipe_list(arguments: Sequence[str]) -> None:
    parse(ListFlags, arguments, "recipe list")
    from lamp.recipes import RECIPES

    width = max(map(len, RECIPES))
    for name, build in RECIPES.items():
        print(f"{name:<{width}}  {build().summary}")


def _recipe_fit(arguments: Sequence[str]) -> None:
    from lamp.recipes.fit import fit
    from lamp.recipes.fit_robot import FitConfig

    config = parse(FitConfig, arguments, "recipe fit", leading="--data")
    fitted, report = fit(config, training_named(config.like))
    print(f"{report}\n{config.out}: {fitted.summary}. Read it, change what you like, and give it to any --recipe.")


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Prints a recipe's full configuration, and how many parameters its models have."""

    name: tyro.conf.Positional[str]
    """The recipe."""
    json: bool = False
    """Print the configuration as JSON."""


def _recipe_show(arguments: Sequence[str]) -> None:
    flags = parse(ShowFlags, arguments, "recipe show")
    from lamp.configuration import to_json
    from lamp.description_text import to_text
    from lamp.model.parameter_count import expected_parameters
    from lamp.recipes import recipe

    shown_recipe = recipe(flags.name)
    if flags.json:
        print(json.dumps(to_json(shown_recipe), indent=2, ensure_ascii=False))
        return
    counts = {name: expected_parameters(model) for name, model in shown_recipe.models.items()}
    print(to_text({**to_json(shown_recipe), "parameters": counts}))


COMMANDS: dict[str, Command] = {
    "demo": Command(summary="run everything once, small, from demonstrations to a report", run=_demo),
    "twin-demo": Command(summary="the same on the twin of a real arm: recordings, both stages, trials", run=_twin_demo),
    "recipe list": Command(summary="list the recipes: named, complete configurations", run=_recipe_list),
    "recipe fit": Command(
        summary="write a recipe that fits your own dataset into a file", run=_recipe_fit, elsewhere="--out FILE"
    ),
    "recipe show": Command(summary="print a recipe's configuration", run=_recipe_show),
}
