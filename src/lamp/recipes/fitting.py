"""A recipe for somebody's own dataset: another recipe with its cameras, state, action and rate, as a file to read and change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from lamp.configuration import to_json
from lamp.data.actions import Gripper
from lamp.data.embodiment import ACTION, STATE, Embodiment, Part, embodiment
from lamp.data.instructions import check_instructions
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.normalise import ContinuousRotation, NoState, RawState, StateTransform
from lamp.errors import ConfigError
from lamp.files import write_json
from lamp.recipes.kinds import AnyRecipe, Recipe, TrainingRecipe
from lamp.train.backbones import BackboneConfig, instruction_reader

WITHOUT = ("none",)
LONGEST = 128
"""Tokens of an instruction that a recipe makes room for by itself."""
PART = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Writes a recipe that fits a dataset into a JSON file, which every --recipe takes: read it, and change what you like."""

    data: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """The LeRobot dataset: a folder or a hub id."""
    out: Path
    """The recipe's file, such as robot.json."""
    like: str = "demo"
    """The recipe that everything else is taken from: demo for a small model, paper_real for the paper's."""
    embodiment: str | None = None
    """How the dataset records its robot, by name or as a JSON file; the flags below then have nothing to say."""
    cameras: tuple[str, ...] = ()
    """The policy's cameras, the reference camera of scene flow first: FEATURE or NAME=FEATURE; by default all, alphabetically."""
    state: tuple[str, ...] = (STATE,)
    """Features that make the state, one after another; KEY[0:6] takes a part. `none` for a policy without a state."""
    action: tuple[str, ...] = (ACTION,)
    """Features that make the action, likewise."""
    gripper: tuple[float, float] | None = None
    """What the action's last value is where the gripper is open, and where it is closed. By default 1 and 0 if only values from 0
    to 1 are recorded, and otherwise it is learnt like any other value."""
    rotation_at: int | None = None
    """Where in the state an axis-angle rotation starts; the policy is then shown it as two columns of its matrix."""
    fps: float | None = None
    """Refuse data at another rate; by default, another rate than this dataset's."""


def fit(config: FitConfig, base: AnyRecipe) -> tuple[TrainingRecipe, str]:
    """Writes the recipe and returns it, and in words what it says.

    Args:
        config: Which dataset, and how it is to be read.
        base: What everything else is taken from.

    Raises:
        ConfigError: The base is a model alone, or something that is asked for is not in the dataset.
        DataError: The dataset cannot be read.
    """
    if not isinstance(base, Recipe | TrainingRecipe):
        raise ConfigError(
            f"recipe {base.name!r} is a model alone; expected one with training, such as demo or paper_real"
        )
    robot, dataset = _robot(config)
    lowest, highest = _last_value(robot, dataset)
    gripper = robot.gripper is not None or (lowest >= 0 and highest <= 1)
    transform = _transform(config)
    states, actions = (_width(dataset, parts) for parts in (robot.state, robot.action))
    seen = _with_room(_seen(base.policy.backbone, list(robot.cameras or ())), dataset.tasks)
    check_instructions(instruction_reader(seen), dataset.tasks, dataset.root)
    policy = base.policy
    assert policy.model.action is not None
    expert = replace(policy.model.action, action_dim=actions, state_dim=transform.width(states))
    made = TrainingRecipe(
        name=config.out.stem,
        summary=f"{base.name}, for {dataset.root.name}",
        motion=replace(base.motion, backbone=seen, embodiment=robot) if base.motion else None,
        policy=replace(
            policy,
            model=replace(policy.model, action=expert),
            backbone=seen,
            embodiment=robot,
            state_transform=transform,
            gripper=-1 if gripper else None,
        ),
        gpus=getattr(base, "gpus", 1),
    )
    write_json(config.out, to_json(made))
    cameras = ", ".join(f"{name} <- {feature}" for name, feature in (robot.cameras or {}).items())
    without = f"not told apart: the action's last value runs from {lowest:g} to {highest:g}; --gripper OPEN CLOSED if it is one"
    told = {
        "cameras": cameras,
        "state": f"{expert.state_dim} values shown to the policy",
        "action": f"{actions} values, chunks of {expert.chunk}, of which {policy.execute} are executed",
        "gripper": "the action's last value" if gripper else without,
        "rate": f"{dataset.fps:g} fps: a chunk is {expert.chunk / dataset.fps:.2g} s",
    }
    return made, "\n".join(f"{name:<8} {value}" for name, value in told.items())


def _robot(config: FitConfig) -> tuple[Embodiment, LeRobotDataset]:
    """The embodiment, its cameras by name, and the dataset as it reads it."""
    if config.embodiment:
        robot = embodiment(config.embodiment)
    else:
        robot = Embodiment(
            name=config.out.stem,
            cameras=_cameras(config.cameras) or None,
            state=tuple(map(_part, (STATE,) if config.state == WITHOUT else config.state)),
            action=tuple(map(_part, config.action)),
            gripper=None if config.gripper is None else Gripper(opened=config.gripper[0], closed=config.gripper[1]),
        )
    dataset = robot.open(config.data)
    named = {name: dataset.described.cameras[name].key for name in sorted(dataset.cameras)}
    if not named:
        raise ConfigError(f"{dataset.root} has no camera; a policy needs one")
    robot = replace(robot, cameras=robot.cameras or named, fps=robot.fps or config.fps or dataset.fps)
    return robot, robot.open(config.data)


def _camera(text: str) -> tuple[str, str]:
    """`front=observation.images.cam_0`, or a feature alone, whose last word is then the name."""
    name, _, feature = text.rpartition("=")
    return name or feature.rpartition(".")[2], feature


def _cameras(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, feature in map(_camera, texts):
        if name in found:
            raise ConfigError(
                f"--cameras: {found[name]} and {feature} would both be called {name!r}; expected different names, such as "
                f"{name}={found[name]} {name}_2={feature}"
            )
        found[name] = feature
    return found


def _part(text: str) -> Part:
    found = PART.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} names no part of a feature; expected KEY or KEY[START:STOP], such as action[0:6]")
    start, stop = found["start"], found["stop"]
    return Part(key=found["key"], start=int(start or 0), stop=int(stop) if stop else None)


def _transform(config: FitConfig) -> StateTransform:
    if config.state == WITHOUT:
        return NoState()
    return RawState() if config.rotation_at is None else ContinuousRotation(start=config.rotation_at)


def _last_value(robot: Embodiment, dataset: LeRobotDataset) -> tuple[float, float]:
    """The least and the largest last value of the actions, with the gripper's convention applied."""
    dataset.check_episodes()
    values = np.concatenate([robot.actions(dataset, index)[:, -1] for index in range(len(dataset))])
    return float(values.min()), float(values.max())


def _width(dataset: LeRobotDataset, parts: tuple[Part, ...]) -> int:
    widths = [(part, int(np.prod(dataset.features[part.key].shape))) for part in parts]
    return sum((part.stop or width) - part.start for part, width in widths)


def _with_room(backbone: BackboneConfig, instructions: Sequence[str]) -> BackboneConfig:
    """The backbone with room for the longest instruction, where it does not have it and can have it."""
    reader = instruction_reader(backbone)
    room = None if reader is None else reader.text_room
    if reader is None or room is None:
        return backbone
    longest = max((len(reader.instruction_ids(text)) for text in instructions), default=0)
    return backbone if longest <= room or longest > LONGEST else replace(backbone, text_tokens=longest)


def _seen(backbone: BackboneConfig, cameras: list[str]) -> BackboneConfig:
    """The backbone with these cameras: the first at the size of its first, the others at that of its last."""
    first, last = backbone.cameras[0][1], backbone.cameras[-1][1]
    return replace(backbone, cameras=tuple((name, last if index else first) for index, name in enumerate(cameras)))
