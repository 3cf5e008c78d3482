"""What a command is, and what commands of several kinds share: recipes, checkpoints, embodiments, further datasets, features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamp.errors import ConfigError
from lamp.flags import value_of

if TYPE_CHECKING:
    from lamp.data.augmentation import Augmentation
    from lamp.data.embodiment import Embodiment
    from lamp.data.episode_selection import EpisodeSelection
    from lamp.recipes import Recipe, TrainingRecipe
    from lamp.train.backbones import BackboneConfig
    from lamp.train.config import MixedIn, PolicyTraining


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the line: what it is for, and what runs it."""

    summary: str
    run: Callable[[Sequence[str]], None]
    waits: bool = False
    """It waits for clients or a person, with no limit of time."""
    elsewhere: str = "--out FOLDER"
    """The flags that choose another place for its output, named in the error where it cannot write."""
    usual: tuple[str, ...] = ()
    """The flags that `--help` lists, of a command with very many; `--help-all` lists the others. Empty: all."""


@dataclass(frozen=True, kw_only=True)
class SelectionFlags:
    """Which episodes of the dataset are used; an episode has to meet all that is given."""

    episodes: str | None = None
    """Episode numbers: 0:40, 0:40:2 or 3,7,20:30; all by default."""
    tasks: str | None = None
    """Task numbers of the dataset, 0,3 or 0:5, or one instruction in its words."""
    states: str | None = None
    """Initial states, as `lamp collect` records them: 0:10."""
    per_task: int | None = None
    """At most so many episodes of each task; those of a smaller number are among those of a larger one."""
    share: float | None = None
    """This share of each task's episodes."""
    selection_seed: int = 0
    """Of the choice by --per-task or --share."""

    @property
    def selection(self) -> EpisodeSelection:
        from lamp.data.episode_selection import EpisodeSelection

        conditions = {name: getattr(self, name) for name in ("episodes", "tasks", "states", "per_task", "share")}
        return EpisodeSelection(**conditions, seed=self.selection_seed)


def need(flag: str, arguments: Sequence[str], command: str) -> None:
    """Refuses a command without the folder, which no recipe can know.

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


def find_checkpoint(path: Path) -> Path:
    """The folder of a checkpoint that may be a hub id."""
    from lamp.train.publishing import find_checkpoint

    return find_checkpoint(path)


def embodiment(name: str | None) -> Embodiment:
    from lamp.data.embodiment import OWN, embodiment

    return OWN if name is None else embodiment(name)


def mixed_in(text: str, named: str | None = None, otherwise: Embodiment | None = None) -> MixedIn:
    from lamp.train.config import MixedIn

    folder, _, name = text.rpartition("=") if "=" in text else (text, "", "")
    chosen = name or named
    return MixedIn(data=folder, embodiment=otherwise if otherwise and not chosen else embodiment(chosen))


def ensure_features(
    data: Path,
    config: BackboneConfig,
    embodiment: Embodiment,
    *,
    token_width: int | None = None,
    augmentation: Augmentation | None = None,
    root: Path | None = None,
) -> None:
    """Completes the feature cache that a training reads; refuses one with other settings."""
    from lamp.data.augmentation import NO_AUGMENTATION
    from lamp.train.backbones import Caching, ensure_features

    ensure_features(
        embodiment.open(data, pictures_only=True),
        config,
        token_width=token_width,
        augmentation=augmentation or NO_AUGMENTATION,
        root=root,
        caching=Caching(refresh=False),
    )


def follow_motion(policy: PolicyTraining, motion: Path) -> PolicyTraining:
    """Takes over the grid and horizon of a motion checkpoint that `lamp resize` wrote."""
    from lamp.progress import say
    from lamp.train.resize_checkpoint import follow_motion

    if not motion.exists():  # the training will say so
        return policy
    model = follow_motion(policy.model, motion)
    if model != policy.model and model.motion is not None:
        rows, columns = model.motion.grid
        say(f"as {motion} was resized: {rows}x{columns} points, {model.motion.horizon} flow steps")
    return replace(policy, model=model)
