"""What a command is, and what commands of several kinds do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamp.errors import ConfigError
from lamp.flags import value_of

if TYPE_CHECKING:
    from lamp.recipes import Recipe, TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the line: what it is for, and what runs it."""

    summary: str
    run: Callable[[Sequence[str]], None]
    waits: bool = False
    """It waits for somebody, for as long as that takes."""
    elsewhere: str = "--out FOLDER"
    """The flags that choose another place for what it writes, said where it cannot write."""


def need(flag: str, arguments: Sequence[str], command: str) -> None:
    """Asks for the folder, which a recipe cannot know.

    Raises:
        ConfigError: It is not among the arguments.
    """
    if value_of(flag, arguments) is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError(f"Missing from lamp {command}: {flag} PATH (lamp {command} --help lists the flags)")


def experiment_named(name: str) -> Recipe:
    """A recipe that is a whole experiment."""
    from lamp.recipes import experiment

    return experiment(name)


def training_named(name: str) -> Recipe | TrainingRecipe:
    """A recipe that can be trained."""
    from lamp.recipes import training

    return training(name)


def found_checkpoint(path: Path) -> Path:
    """The folder of a checkpoint that may be a hub id."""
    from lamp.train.publishing import find_checkpoint

    return find_checkpoint(path)
