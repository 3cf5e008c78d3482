"""Embodiments: which features of a dataset are a robot's cameras, state and action, and what its actions mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from lamp.configuration import from_json, to_json
from lamp.data.actions import (
    Absolute,
    ActionKind,
    AxisAngle,
    Delta,
    Gripper,
    Pose,
    Relative,
    RollPitchYaw,
    StateRotationFormat,
)
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import ConfigError, DataError, MismatchError, unknown
from lamp.json_files import read_json

STATE = "observation.state"
ACTION = "action"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive entries of a feature."""

    key: str
    start: int = 0
    stop: int | None = None
    """None: to the end."""

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ConfigError(
                f"{self.key}[{self.start}:{'' if self.stop is None else self.stop}] holds no values; expected "
                "KEY[START:STOP] with START from 0 on and STOP above it"
            )


@dataclass(frozen=True, kw_only=True)
class StateRotation:
    """Values of the state that are a rotation: three, or four of a quaternion."""

    start: int = 3
    """Where they are in the state."""
    rotation: StateRotationFormat = field(default_factory=AxisAngle)
    """What they are."""

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ConfigError(f"a rotation of the state starts at {self.start}; expected its place, from 0 on")


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """A robot as a dataset records it. Parts are put one after another, in the order given."""

    name: str
    cameras: dict[str, str] | None = None
    """The policy's name of each camera -> the dataset's feature; None: all that the dataset has, under their own names."""
    state: tuple[Part, ...] = (Part(key=STATE),)
    action: tuple[Part, ...] = (Part(key=ACTION),)
    gripper: Gripper | tuple[Gripper, ...] | None = None
    """One for each arm that has one; None: no dimension is a gripper, or it is learnt as it is recorded."""
    rotations: tuple[StateRotation, ...] | None = None
    """Which of the state's values are rotations: none of a robot whose state is joint angles; None: that is not known."""
    kind: ActionKind = field(default_factory=Delta)
    fps: float | None = None
    """The rate that the dataset must have; None: any."""

    def __post_init__(self) -> None:
        dims = [gripper.dim for gripper in self.grippers]
        if len(set(dims)) < len(dims):
            raise ConfigError(
                f"the embodiment {self.name!r} has two grippers at {dims}; expected each at its own dimension"
            )

    @property
    def grippers(self) -> tuple[Gripper, ...]:
        """All known grippers; empty where none is."""
        if self.gripper is None:
            return ()
        return (self.gripper,) if isinstance(self.gripper, Gripper) else self.gripper

    @property
    def action_keys(self) -> tuple[str, ...]:
        """The features that the action is made of."""
        return tuple(part.key for part in self.action)

    def open(self, source: str | os.PathLike[str], *, pictures_only: bool = False) -> LeRobotDataset:
        """Opens a dataset, with its cameras under the policy's names.

        `pictures_only`: neither states nor actions are read, as in Stage 1, and need not be there.

        Raises:
            DataError: It cannot be read, or has no actions at all.
            ConfigError: It lacks a camera or a feature.
            MismatchError: It runs at another rate, or a feature is too narrow.
        """
        dataset = LeRobotDataset(source, cameras=self.cameras)
        if self.fps is not None and abs(dataset.fps - self.fps) > 0.01 * self.fps:
            raise MismatchError(
                f"{dataset.root} runs at {dataset.fps:g} fps; the embodiment {self.name!r} at {self.fps:g}"
            )
        if pictures_only:
            return dataset
        if not any(name.split(".")[0] == "action" or name in self.action_keys for name in dataset.features):
            raise DataError(
                f"{dataset.root} has no actions; expected demonstrations with actions. `lamp train motion` can learn "
                "from its motion, a policy cannot"
            )
        for part in (*self.state, *self.action):
            if part.key not in dataset.features:
                raise unknown(
                    f"feature of {dataset.root} (for the embodiment {self.name!r})", part.key, dataset.features
                )
            width = int(np.prod(dataset.features[part.key].shape))
            if not 0 <= part.start < (part.stop or width) <= width:
                raise MismatchError(
                    f"{part.key} of {dataset.root} has {width} values; the embodiment {self.name!r} asks for "
                    f"{part.start} to {part.stop or width}"
                )
        self._check_grippers(dataset)
        return dataset

    def _check_grippers(self, dataset: LeRobotDataset) -> None:
        """
        Raises:
            MismatchError: A gripper is where the action has no value, or where another one is.
        """
        width = self.action_width(dataset)
        outside = [one.dim for one in self.grippers if not -width <= one.dim < width]
        if outside or len({one.dim % width for one in self.grippers}) < len(self.grippers):
            raise MismatchError(
                f"the embodiment {self.name!r} has grippers at {[one.dim for one in self.grippers]}; the action of "
                f"{dataset.root} has {width} values: expected different ones of 0 to {width - 1}"
            )

    def action_width(self, dataset: LeRobotDataset) -> int:
        """Number of values of an action."""
        widths = [(part, int(np.prod(dataset.features[part.key].shape))) for part in self.action]
        return sum((part.stop or width) - part.start for part, width in widths)

    def states(self, dataset: LeRobotDataset, episode: int) -> Float32[np.ndarray, "l s"]:
        """An episode's raw states."""
        return _joined(dataset, episode, self.state)

    def state_names(self, dataset: LeRobotDataset) -> tuple[str, ...]:
        """The dataset's names of the state's values; a value without a name of its own has its feature's."""
        return _names(dataset, self.state)

    def action_names(self, dataset: LeRobotDataset) -> tuple[str, ...]:
        """The same of the action's values."""
        return _names(dataset, self.action)

    def state_features(self, dataset: LeRobotDataset) -> dict[str, int]:
        """The features that the state is taken from, in the order of its parts, and how many values each has."""
        return {part.key: int(np.prod(dataset.features[part.key].shape)) for part in self.state}

    def state_columns(self, features: Mapping[str, int]) -> tuple[int, ...]:
        """Where the state's values are in these features, one after another."""
        starts = dict(zip(features, np.cumsum([0, *features.values()]).tolist(), strict=False))
        columns = [
            range(starts[part.key] + part.start, starts[part.key] + (part.stop or features[part.key]))
            for part in self.state
        ]
        return tuple(column for part in columns for column in part)

    def recorded_actions(self, dataset: LeRobotDataset, episode: int) -> Float32[np.ndarray, "l a"]:
        """An episode's actions as they are recorded, one a frame."""
        return _joined(dataset, episode, self.action)

    def actions(self, dataset: LeRobotDataset, episode: int) -> Float32[np.ndarray, "l a"]:
        """An episode's actions, one a frame, with the gripper 1 = open: the first half of `learnt`, which needs no state."""
        return self._opened(self.recorded_actions(dataset, episode))

    def _opened(self, actions: Float[np.ndarray, "*b a"]) -> Float[np.ndarray, "*b a"]:
        """Actions with each gripper 1 = open, 0 = closed."""
        for gripper in self.grippers:
            actions = gripper.learnt(actions)
        return actions

    def learnt(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """Recorded chunks to what is learnt of them, each by the state that it starts from."""
        return self.kind.relate(self._opened(chunks), states)

    def recorded(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """The inverse of `learnt`: a policy's actions in the units in which the robot was recorded."""
        chunks = self.kind.restore(chunks, states)
        for gripper in self.grippers:
            chunks = gripper.recorded(chunks)
        return chunks

    def chunks(self, dataset: LeRobotDataset, episode: int, chunk: int) -> Float32[np.ndarray, "l h a"]:
        """What is learnt from each frame of an episode: the actions from there on; past the end the last one is held."""
        actions = self.actions(dataset, episode)
        places = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk), len(actions) - 1)
        return self.kind.relate(actions[places], self.states(dataset, episode)).astype(np.float32)

    @property
    def client_metadata(self) -> dict[str, Any]:
        """What a client has to know about states and actions, as plain values; `gripper` only where it is known, a list where
        there are several."""
        kind = type(self.kind).__name__.lower()
        return {"actions": kind, "embodiment": to_json(self), **Gripper.metadata_entry(self.grippers)}

    @property
    def per_frame(self) -> bool:
        """Whether an action is the same thing in every chunk that it is part of."""
        return self.kind.per_frame


def collected_in_libero(dataset: LeRobotDataset) -> bool:
    """Whether `lamp collect` recorded the dataset in LIBERO, with actions in [-1, 1]."""
    return str(dataset.lamp.get("suite")).startswith("libero")


def _names(dataset: LeRobotDataset, parts: Sequence[Part]) -> tuple[str, ...]:
    names: list[str] = []
    for part in parts:
        feature = dataset.features[part.key]
        width = int(np.prod(feature.shape))
        own = feature.names or ()
        names += (own if len(own) == width else (part.key,) * width)[part.start : part.stop]
    return tuple(names)


def _joined(dataset: LeRobotDataset, episode: int, parts: Sequence[Part]) -> Float32[np.ndarray, "l d"]:
    if not parts:
        return np.zeros((dataset.episode(episode).length, 0), np.float32)
    values = []
    for part in parts:
        column = dataset.column(part.key, episode).astype(np.float32)
        if len(column) == 0:
            raise DataError(f"{dataset.root}: episode {episode} has no frames; expected at least one: leave it out")
        column = column.reshape(len(column), -1)[:, part.start : part.stop]
        wrong = ~np.isfinite(column).all(axis=1)
        if wrong.any():
            frame = int(wrong.argmax())
            raise DataError(
                f"{dataset.data_path(episode)}: episode {episode}, frame {frame}, {part.key}: {column[frame].tolist()} is not "
                "finite; leave the episode out, or mend it (`lamp data check` lists all faults)"
            )
        values.append(column)
    return values[0] if len(values) == 1 else np.concatenate(values, axis=1)


OWN = Embodiment(name="lamp")
"""What `lamp collect` records, and any dataset that calls its features as LeRobot recommends."""

LIBERO = Embodiment(
    name="libero",
    cameras={"agentview": "observation.images.image", "wrist": "observation.images.wrist_image"},
    gripper=Gripper(),
    rotations=(StateRotation(),),
    fps=20.0,
)
"""LIBERO without its no-operations, as LeRobot v2 (`IPEC-COMMUNITY/libero_*_no_noops_1.0.0_lerobot`).

`observation.state` (8): position, axis-angle, two gripper joints; `action` (7): deltas in [-1, 1], gripper 1 = open.
"""

LIBERO_OPENPI = Embodiment(
    name="libero_openpi",
    cameras={"agentview": "image", "wrist": "wrist_image"},
    state=(Part(key="state"),),
    action=(Part(key="actions"),),
    gripper=Gripper(opened=-1.0, closed=1.0),
    rotations=(StateRotation(),),
)
"""The same demonstrations under openpi's names (`physical-intelligence/libero`): images in the data files, gripper -1 = open."""

BRIDGE = Embodiment(
    name="bridge",
    cameras={"primary": "observation.images.image_0"},
    state=(Part(key=STATE, stop=6), Part(key=STATE, start=7)),
    gripper=Gripper(),
    rotations=(StateRotation(rotation=RollPitchYaw()),),
    fps=5.0,
)
"""BridgeV2 as LeRobot v2 (`IPEC-COMMUNITY/bridge_orig_lerobot`).

`observation.state` (8): position, roll-pitch-yaw, a zero that is left out, gripper; `action` (7): deltas of the pose, gripper
1 = open. Some of its episodes have no instruction.
"""

DROID = Embodiment(
    name="droid",
    cameras={"exterior": "observation.images.exterior_1_left", "wrist": "observation.images.wrist_left"},
    state=(Part(key="observation.state.joint_position"), Part(key="observation.state.gripper_position")),
    action=(Part(key="action.joint_position"), Part(key="action.gripper_position")),
    gripper=Gripper(opened=0.0, closed=1.0),
    rotations=(),
    kind=Absolute(),
    fps=15.0,
)
"""DROID as LeRobot v3.0 or v2.1 (`lerobot/droid_1.0.1`): seven joint angles [rad] and a gripper from 0 = open to 1 = closed."""

INTERNDATA_A1 = Embodiment(
    name="interndata_a1",
    cameras={"head": "images.rgb.head", "hand": "images.rgb.hand"},
    state=(Part(key="states.joint.position"), Part(key="states.gripper.position")),
    action=(Part(key="actions.joint.position"), Part(key="actions.gripper.position")),
    rotations=(),
    kind=Absolute(),
    fps=30.0,
)
"""InternData-A1's single arms (Franka), LeRobot v2.1: joint angles [rad] and the gripper as recorded [m], learnt as such."""

INTERNDATA_A1_DUAL = Embodiment(
    name="interndata_a1_dual",
    cameras={
        "head": "images.rgb.head",
        "hand_left": "images.rgb.hand_left",
        "hand_right": "images.rgb.hand_right",
    },
    state=tuple(
        Part(key=f"states.{side}_{part}.position") for side in ("left", "right") for part in ("joint", "gripper")
    ),
    action=tuple(
        Part(key=f"actions.{side}_{part}.position") for side in ("left", "right") for part in ("joint", "gripper")
    ),
    rotations=(),
    kind=Absolute(),
    fps=30.0,
)
"""InternData-A1's pairs of arms (Genie-1, Lift-2, Split Aloha): left joints, left gripper, right joints, right gripper."""

FLEXIV = Embodiment(
    name="flexiv",
    cameras={"front": "observation.images.front"},
    gripper=Gripper(),
    rotations=(StateRotation(),),
    kind=Relative(pose=Pose()),
)
"""The paper's rig: Flexiv Rizon 4, Robotiq 2F-85, one camera in front.

`observation.state` (7): the tool's pose in the robot's frame as position [m] and axis-angle [rad], gripper; `action` (7): the
target pose likewise, gripper 1 = open. What is learnt is the target relative to the present pose.
"""

EMBODIMENTS: Mapping[str, Embodiment] = {
    one.name: one
    for one in (
        OWN,
        LIBERO,
        LIBERO_OPENPI,
        BRIDGE,
        DROID,
        INTERNDATA_A1,
        INTERNDATA_A1_DUAL,
        FLEXIV,
    )
}


def embodiment(name: str) -> Embodiment:
    """The embodiment of a name, or of a JSON file.

    Raises:
        ConfigError: There is none, or the file does not describe one.
        DataError: There is no such file, or it is not JSON.
    """
    if name.endswith(".json"):
        return from_json(Embodiment, read_json(Path(name), "embodiment"), where=name)
    if name not in EMBODIMENTS:
        raise unknown("embodiment", name, EMBODIMENTS)
    return EMBODIMENTS[name]


_POSE = ("m", "m", "m", "rad", "rad", "rad")
_STEPS = ("[-1, 1]",) * 6
ACTION_UNITS: Mapping[str, tuple[str, ...]] = {
    OWN.name: (*_STEPS, "1 = open"),
    LIBERO.name: (*_STEPS, "1 = open"),
    LIBERO_OPENPI.name: (*_STEPS, "-1 = open"),
    BRIDGE.name: (*_POSE, "1 = open"),
    DROID.name: (*("rad",) * 7, "0 = open"),
    FLEXIV.name: (*_POSE, "1 = open"),
}


def action_units(embodiment: Embodiment, dataset: LeRobotDataset, width: int) -> tuple[str, ...]:
    """The unit of each recorded value of an action; none where they are not known.

    Args:
        width: Values of an action.
    """
    known = EMBODIMENTS.get(embodiment.name) == embodiment and (embodiment != OWN or collected_in_libero(dataset))
    units = ACTION_UNITS.get(embodiment.name, ()) if known else ()
    return units if len(units) == width else ()
