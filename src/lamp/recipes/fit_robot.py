"""What a dataset says of its robot: cameras, state, grippers, and what its actions mean; what it does not say is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float32

from lamp.data.actions import (
    Absolute,
    ActionComparison,
    AxisAngle,
    Delta,
    Gripper,
    Pose,
    Quaternion,
    Relative,
    RollPitchYaw,
    StateRotationFormat,
    compare_with_state,
)
from lamp.data.embodiment import ACTION, STATE, Embodiment, Part, StateRotation, embodiment
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.normalizers import ContinuousRotation, NoState, RawState, StateTransform
from lamp.errors import ConfigError
from lamp.files import is_file_name
from lamp.train.datasets import GRIPPER_MARGIN_CALIBRATED, is_open_or_closed


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
    actions: Literal["absolute", "delta", "relative"] | None = None
    """What the actions are: targets in the units of the state, learnt as recorded (absolute) or from the state that a chunk
    starts at (relative), or changes from one step to the next (delta). By default it is found out from the data, and said."""
    gripper: tuple[float, ...] = ()
    """What the action's gripper is where it is open, and where it is closed; a pair for each arm where they differ. By default 1
    and 0 if it is recorded from 0 to 1 and reaches both, and otherwise it is learnt like any other value."""
    gripper_at: tuple[int, ...] = ()
    """Which of the action's values are grippers, such as 6 13 of two arms. By default those that the dataset calls so, else the
    last."""
    rotation_at: int | None = None
    """Where in the state a rotation starts; the policy is then shown it as two columns of its matrix."""
    rotation: Literal["axis_angle", "roll_pitch_yaw", "quaternion_xyzw", "quaternion_wxyz"] = "axis_angle"
    """What its three values are, or its four."""
    degrees: bool = False
    """They are in degrees."""
    fps: float | None = None
    """Refuse data at another rate; by default, another rate than this dataset's."""


def robot_of(config: FitConfig) -> tuple[Embodiment, LeRobotDataset]:
    """The embodiment, its cameras by name, and the dataset as it reads it."""
    if config.embodiment:
        robot = embodiment(config.embodiment)
    else:
        robot = Embodiment(
            name=config.out.stem,
            cameras=_cameras(config.cameras) or None,
            state=tuple(map(_part, _state(config))),
            action=tuple(map(_part, config.action)),
            rotations=None
            if config.rotation_at is None
            else (StateRotation(start=config.rotation_at, rotation=_rotation(config)),),
        )
        robot = replace(robot, gripper=_grippers_of_flags(config, robot))
    dataset = robot.open(config.data)
    named = {name: dataset.meta.cameras[name].key for name in sorted(dataset.cameras)}
    if not named:
        raise ConfigError(f"{dataset.root} has no camera; a policy needs one")
    robot = replace(robot, cameras=robot.cameras or named, fps=robot.fps or config.fps or dataset.fps)
    for name, feature in (robot.cameras or {}).items():
        if not is_file_name(name):  # folders of scene flow and files of recordings are called so
            raise ConfigError(
                f"a camera cannot be called {name!a}; expected a name that a file can have, such as --cameras front={feature}"
            )
    return robot, robot.open(config.data)


def _state(config: FitConfig) -> tuple[str, ...]:
    """The features of the state. A policy without one still has its actions compared with the recorded state, where there is one.

    Raises:
        ConfigError: The dataset records no state, and the policy is to see one.
    """
    if config.state not in (WITHOUT, (STATE,)):
        return config.state
    features = LeRobotDataset(config.data).features
    if STATE in features:
        return (STATE,)
    if config.state == WITHOUT:
        return ()
    raise ConfigError(
        f"{config.data} has no {STATE}, but {', '.join(features)}; expected --state with its own names, or --state none for a "
        "policy that sees pictures only"
    )


def _camera(text: str) -> tuple[str, str]:
    """`front=observation.images.cam_0`, or a feature alone, whose last word is then the name."""
    name, _, feature = text.rpartition("=")
    return name or feature.rpartition(".")[2], feature


def _cameras(texts: Sequence[str]) -> dict[str, str]:
    features: dict[str, str] = {}
    for name, feature in map(_camera, texts):
        if name in features:
            raise ConfigError(
                f"--cameras: {features[name]} and {feature} would both be called {name!r}; expected different names, such as "
                f"{name}={features[name]} {name}_2={feature}"
            )
        features[name] = feature
    return features


def _part(text: str) -> Part:
    match = PART.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} names no part of a feature; expected KEY or KEY[START:STOP], such as action[0:6]")
    start, stop = match["start"], match["stop"]
    return Part(key=match["key"], start=int(start or 0), stop=int(stop) if stop else None)


def transform_of(config: FitConfig, robot: Embodiment) -> StateTransform:
    if config.state == WITHOUT:
        return NoState()
    if not robot.rotations:
        return RawState()
    return ContinuousRotation(start=robot.rotations[0].start, rotation=robot.rotations[0].rotation)


def _rotation(config: FitConfig) -> StateRotationFormat:
    if config.rotation == "axis_angle":
        return AxisAngle(degrees=config.degrees)
    if config.rotation == "roll_pitch_yaw":
        return RollPitchYaw(degrees=config.degrees)
    return Quaternion(order="xyzw" if config.rotation == "quaternion_xyzw" else "wxyz")


def quaternions_of(robot: Embodiment, dataset: LeRobotDataset) -> str:
    """Which four values of the state have length 1 throughout, as a quaternion has, and in words what to do; empty: none.

    Left as they are they jump wherever the recording turns all their signs.
    """
    states = np.concatenate([robot.states(dataset, n) for n in _some(len(dataset))]).astype(np.float64)
    known = {index for one in robot.rotations or () for index in range(one.start, one.start + one.rotation.SIZE)}
    for start in range(states.shape[1] - 3):
        four = states[:, start : start + 4]
        unit = np.abs(np.linalg.norm(four, axis=1) - 1).max() < 1e-2
        if unit and (four.std(0) > 1e-3).sum() >= 2 and start not in known:
            return (
                f"the state's values {start} to {start + 3} have length 1 throughout, as a quaternion has, and are shown as "
                f"recorded, signs and all: give --rotation-at {start} --rotation quaternion_xyzw (or quaternion_wxyz)"
            )
    return ""


def _grippers_of_flags(config: FitConfig, robot: Embodiment) -> Gripper | tuple[Gripper, ...] | None:
    """The grippers that the flags describe; None where they say nothing of their units.

    Raises:
        ConfigError: They do not say which value is which gripper.
    """
    if not config.gripper:
        return None
    dims = config.gripper_at
    if not dims:
        dims = _named_grippers(robot, robot.open(config.data)) or (-1,)
    pairs = list(zip(config.gripper[::2], config.gripper[1::2], strict=False))
    if len(config.gripper) % 2 or len(pairs) not in (1, len(dims)):
        raise ConfigError(
            f"--gripper {' '.join(f'{value:g}' for value in config.gripper)} given, with grippers at "
            f"{' '.join(map(str, dims))} of the action; expected OPEN CLOSED, or such a pair for each of them (--gripper-at)"
        )
    grippers = tuple(
        Gripper(dim=dim, opened=opened, closed=closed)
        for dim, (opened, closed) in zip(dims, pairs * (len(dims) // len(pairs)), strict=True)
    )
    return grippers[0] if len(grippers) == 1 else grippers


def _named_grippers(robot: Embodiment, dataset: LeRobotDataset) -> tuple[int, ...]:
    """The action's values that the dataset calls grippers, by their own names or that of a feature of one value; the last one is
    -1."""
    names = robot.action_names(dataset)
    dims = [dim for dim, name in enumerate(names) if "gripper" in name.lower() and names.count(name) == 1]
    return tuple(-1 if dim == len(names) - 1 else dim for dim in dims)


def grippers_of(config: FitConfig, robot: Embodiment, dataset: LeRobotDataset) -> tuple[tuple[int, ...], str]:
    """Which of the action's values are learnt as grippers, and in words why.

    Raises:
        ConfigError: There is no such value.
    """
    dataset.check_episodes()
    recorded = np.concatenate([robot.actions(dataset, index) for index in range(len(dataset))])
    width = recorded.shape[1]
    dims = tuple(one.dim for one in robot.grippers) or config.gripper_at or _named_grippers(robot, dataset) or (-1,)
    for dim in dims:
        if not -width <= dim < width:
            raise ConfigError(f"--gripper-at {dim} given, and an action has {width} values; expected 0 to {width - 1}")
    if len({dim % width for dim in dims}) < len(dims):
        raise ConfigError(f"--gripper-at {' '.join(map(str, dims))} names a value twice; expected each gripper once")
    grippers = [_gripper(robot, recorded[:, dim], dim, width) for dim in dims]
    return tuple(dim for dim, (one, _) in zip(dims, grippers, strict=True) if one), "; ".join(
        text for _, text in grippers
    )


def _gripper(robot: Embodiment, values: Float32[np.ndarray, " n"], dim: int, width: int) -> tuple[bool, str]:
    """Whether a value of the action is learnt as a gripper, and in words why."""
    which = "the action's last value" if dim % width == width - 1 else f"value {dim} of the action"
    lowest, highest = float(values.min()), float(values.max())
    known = next((one for one in robot.grippers if one.dim == dim), None)
    if known is not None:
        ends = sorted(known.closed + end * (known.opened - known.closed) for end in (lowest, highest))
        text = f"{which}, {known.opened:g} = open, {known.closed:g} = closed, in which units the robot is sent it"
        if not -GRIPPER_MARGIN_CALIBRATED <= lowest <= highest <= 1 + GRIPPER_MARGIN_CALIBRATED:
            text += (
                f"; BUT it is recorded from {ends[0]:g} to {ends[1]:g}, which training refuses: give --gripper as it is"
            )
        return True, text
    if is_open_or_closed(values) or (0 <= lowest <= 0.1 and 0.9 <= highest <= 1):
        return True, f"{which}, taken as 1 = open, 0 = closed"
    return False, (
        f"not told apart: {which} runs from {lowest:g} to {highest:g}, and is learnt and sent like any other; --gripper OPEN "
        "CLOSED if it is one"
    )


def with_kind(
    config: FitConfig, robot: Embodiment, dataset: LeRobotDataset, grippers: Sequence[int]
) -> tuple[Embodiment, str]:
    """The embodiment with what its actions are, and in words why.

    Raises:
        ConfigError: They cannot be learnt relative to the state.
    """
    if config.embodiment:
        return robot, f"{type(robot.kind).__name__.lower()}, as the embodiment {robot.name!r} has them"
    known = {dim % robot.action_width(dataset) for dim in grippers}
    comparison = compare_with_state(
        [(robot.recorded_actions(dataset, n), robot.states(dataset, n)) for n in _some(len(dataset))], without=known
    )
    name = config.actions or comparison.kind
    if name == "relative":
        kind = _relative(config, robot, dataset, comparison, known)
        text = "relative: targets, learnt from the state that a chunk starts at, and sent as targets"
        return replace(robot, kind=kind), f"{text} ({comparison.why})"
    if name is None:
        remedy = "say --actions absolute, delta or relative"
        return robot, f"not told apart: {comparison.why}; {remedy}, until then they are learnt as recorded"
    kind = Absolute() if name == "absolute" else Delta()
    what = "targets" if name == "absolute" else "changes from one step to the next"
    why = (
        comparison.why
        if config.actions is None or comparison.kind == name
        else f"as --actions says; but {comparison.why}"
    )
    more = "; --actions relative learns them from the present state" if name == "absolute" else ""
    return replace(robot, kind=kind), f"{name}: {what}, learnt as recorded ({why}){more}"


def _relative(
    config: FitConfig, robot: Embodiment, dataset: LeRobotDataset, comparison: ActionComparison, grippers: set[int]
) -> Relative:
    """Which of the actions are learnt as differences from which values of the state.

    Raises:
        ConfigError: None can be.
    """
    actions, states = (width_of(dataset, parts) for parts in (robot.action, robot.state))
    if comparison.kind == "delta":
        raise ConfigError(
            f"--actions relative given, but the actions of {dataset.root} are changes already ({comparison.why}); expected "
            "targets in the units of the state: --actions delta"
        )
    pairs = dict(comparison.pairs) or {index: index for index in range(min(actions, states)) if index not in grippers}
    pose = None
    rotation = _rotation(config)
    if config.rotation_at is not None and isinstance(rotation, Quaternion):  # differences of its values are no rotation
        own = range(config.rotation_at, config.rotation_at + rotation.SIZE)
        pairs = {action: state for action, state in pairs.items() if state not in own}
    elif not isinstance(rotation, Quaternion) and config.rotation_at is not None and config.rotation_at >= 3:
        start = config.rotation_at - 3
        first = next((action for action, state in pairs.items() if state == start), 0)
        if first + 6 <= actions and start + 6 <= states:
            poses = [robot.recorded_actions(dataset, n)[:, first : first + 6] for n in _some(len(dataset))]
            poses += [robot.states(dataset, n)[:, start : start + 6] for n in _some(len(dataset))]
            angles = np.concatenate(poses)[:, 3:].astype(np.float64)
            # Numbers that the same rotations would not come back as go on beyond half a turn.
            wrapped = np.allclose(rotation.values(rotation.matrix(angles)), angles, rtol=1e-3, atol=1e-4)
            pose = Pose(action=first, state=start, rotation=rotation, unwrapped=not wrapped)
            pairs = {action: state for action, state in pairs.items() if not first <= action < first + 6}
    if pose is None and not pairs:
        raise ConfigError(
            f"--actions relative given, but no value of the action of {dataset.root} is one of the state's; expected targets in "
            "the units of the state: --actions absolute"
        )
    return Relative(pose=pose, offsets=tuple(pairs.items()))


def _some(episodes: int) -> list[int]:
    """At most so many episodes, spread over all, as say what the actions are."""
    return np.unique(np.linspace(0, episodes - 1, min(episodes, COMPARED)).round().astype(int)).tolist()


WITHOUT = ("none",)


COMPARED = 40
"""Episodes from which it is found out what the actions are."""


PART = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


def width_of(dataset: LeRobotDataset, parts: tuple[Part, ...]) -> int:
    widths = [(part, int(np.prod(dataset.features[part.key].shape))) for part in parts]
    return sum((part.stop or width) - part.start for part, width in widths)
