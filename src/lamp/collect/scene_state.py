"""What the scripted expert knows of the simulator: exact poses, collision geometry and contacts of a pick-and-place task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lamp.errors import ConfigError

Vector = Float[np.ndarray, "3"]
Rotation = Float[np.ndarray, "3 3"]
Points = Float[np.ndarray, "n 3"]

SAMPLE_SPACING = 0.012
"""Distance between the points that stand for a collision geom in [m]."""
ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")
CYLINDER = 5


def _samples(kind: int, low: Vector, high: Vector) -> Points:
    """A lattice that fills a geom's box; a cylinder loses the corners it does not have."""
    counts = np.clip(np.ceil((high - low) / SAMPLE_SPACING).astype(int) + 1, 2, 14)
    axes = [np.linspace(low[i], high[i], counts[i]) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    if kind != CYLINDER:
        return points
    centre, radii = (low + high)[:2] / 2, (high - low)[:2] / 2
    return points[np.sum(((points[:, :2] - centre) / radii) ** 2, axis=1) <= 1.0 + 1e-9]


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """The collision volume of the scene without robot, table and floor, as points in the world in [m]."""

    object: Float[np.ndarray, "o 3"]
    """What is to be moved."""
    goal: Float[np.ndarray, "g 3"]
    """The container, surface or fixture to bring it to."""
    others: Float[np.ndarray, "p 3"]

    @property
    def obstacles(self) -> Float[np.ndarray, "q 3"]:
        """All that the moved object must not touch on its way."""
        return np.concatenate([self.goal, self.others])

    @property
    def top(self) -> float:
        """Height of the object's highest point in [m]."""
        return float(self.object[:, 2].max())

    @property
    def bottom(self) -> float:
        """Height of the object's lowest point in [m]."""
        return float(self.object[:, 2].min())


def check_goals(goals: Sequence[Sequence[str]]) -> None:
    """
    Raises:
        ConfigError: A task's goal is not a single `in` or `on` relation, which is all that the scripted expert can do.
    """
    if len(goals) != 1 or len(goals[0]) != 3 or goals[0][0] not in ("in", "on"):
        raise ConfigError(f"the scripted expert brings one object to one place; this task's goal is {goals}.")


class LiberoScene:
    """A privileged, read-only view of a LIBERO environment whose goal is to bring one object to one place.

    Nothing is remembered between calls: every value is read from the simulation's present state.

    Raises:
        ConfigError: If the goal is not a single `in` or `on` relation.
    """

    def __init__(self, model: Any, data: Any, robosuite: Any) -> None:
        self.model, self.data, self.robosuite = model, data, robosuite
        goals = robosuite.parsed_problem["goal_state"]
        check_goals(goals)
        _, self.object_name, self.target_name = goals[0]
        self.object_body = int(model.body_rootid[robosuite.obj_body_id[self.object_name]])
        self._site = model.site("gripper0_grip_site").id
        self._finger_qpos = [model.jnt_qposadr[model.joint(f"gripper0_finger_joint{i}").id] for i in (1, 2)]
        self._finger_qvel = [model.jnt_dofadr[model.joint(f"gripper0_finger_joint{i}").id] for i in (1, 2)]
        self._arm_qvel = [model.jnt_dofadr[model.joint(f"robot0_joint{i}").id] for i in range(1, 8)]
        self._base = model.body("robot0_base").id
        self._index_geoms()

    def _index_geoms(self) -> None:
        model = self.model
        geom_body = np.asarray(model.geom_bodyid)
        names = [model.body(i).name for i in range(model.nbody)]
        collides = (np.asarray(model.geom_contype) != 0) | (np.asarray(model.geom_conaffinity) != 0)
        robot_body = np.array([name.startswith(ROBOT_PREFIXES) for name in names])
        roots = np.asarray(model.body_rootid)[geom_body]
        arena_body = np.array([name in ("world", "floor") or "table" in name for name in names])
        things = np.flatnonzero(collides & ~robot_body[geom_body] & ~arena_body[geom_body])
        aabb = np.asarray(model.geom_aabb)
        clouds = [
            _samples(int(model.geom_type[g]), aabb[g, :3] - aabb[g, 3:], aabb[g, :3] + aabb[g, 3:]) for g in things
        ]
        self._local: Points = np.concatenate(clouds)
        self._geom: Int[np.ndarray, " n"] = np.repeat(things, [len(cloud) for cloud in clouds])
        self._root: Int[np.ndarray, " n"] = roots[self._geom]
        finger = [np.array([side in name for name in names]) for side in ("left", "right")]
        tips = [np.array([f"finger_joint{i}_tip" in name for name in names]) for i in (1, 2)]
        self._finger_geoms = [np.flatnonzero((finger[i] | tips[i])[geom_body] & robot_body[geom_body]) for i in (0, 1)]
        self._object_geoms = np.flatnonzero(roots == self.object_body)
        goal = self.target_name
        if goal in self.robosuite.object_sites_dict:
            goal = self.robosuite.object_sites_dict[goal].parent_name
        self._goal_root = int(model.body_rootid[self.robosuite.obj_body_id[goal]])
        self._goal_geoms = np.flatnonzero(roots == self._goal_root)

    def volumes(self) -> Volumes:
        rotations = np.asarray(self.data.geom_xmat).reshape(-1, 3, 3)[self._geom]
        points = np.asarray(self.data.geom_xpos)[self._geom] + np.einsum("nij,nj->ni", rotations, self._local)
        own, goal = self._root == self.object_body, self._root == self._goal_root
        return Volumes(object=points[own], goal=points[goal], others=points[~own & ~goal])

    @property
    def object_position(self) -> Vector:
        """The object's body origin in the world in [m]; this is what LIBERO's goals measure."""
        return np.array(self.data.xpos[self.object_body])

    @property
    def object_rotation(self) -> Rotation:
        return np.array(self.data.xmat[self.object_body]).reshape(3, 3)

    @property
    def target_position(self) -> Vector:
        """The centre of the goal's site, or of the goal's body, in the world in [m]."""
        if self.target_name in self.robosuite.object_sites_dict:
            return np.array(self.data.site_xpos[self.model.site(self.target_name).id])
        return np.array(self.data.xpos[self.robosuite.obj_body_id[self.target_name]])

    @property
    def base_position(self) -> Vector:
        """Where the arm stands, in the world in [m]."""
        return np.array(self.data.xpos[self._base])

    @property
    def hand_position(self) -> Vector:
        """The point between the finger pads in the world in [m]."""
        return np.array(self.data.site_xpos[self._site])

    @property
    def hand_rotation(self) -> Rotation:
        """world_from_hand: x is the direction in which the fingers close, z points out of the hand."""
        return np.array(self.data.site_xmat[self._site]).reshape(3, 3)

    @property
    def opening(self) -> float:
        """Distance between the finger pads in [m]; 0.08 when fully open."""
        left, right = self.data.qpos[self._finger_qpos]
        return float(left - right)

    @property
    def closing_speed(self) -> float:
        """Rate at which the opening shrinks in [m/s]; negative while it grows."""
        left, right = self.data.qvel[self._finger_qvel]
        return float(right - left)

    @property
    def still(self) -> bool:
        """Whether no joint of the arm moves by more than 0.02 rad/s."""
        return bool(np.abs(self.data.qvel[self._arm_qvel]).max() < 0.02)

    @property
    def touching(self) -> tuple[bool, bool]:
        """Whether the left and the right finger touch the object."""
        pairs = np.asarray(self.data.contact.geom[: self.data.ncon])
        own = np.isin(pairs, self._object_geoms).any(axis=1)
        left, right = (bool((own & np.isin(pairs, geoms).any(axis=1)).any()) for geoms in self._finger_geoms)
        return left, right

    @property
    def resting(self) -> bool:
        """Whether the object touches what it is to be brought to."""
        pairs = np.asarray(self.data.contact.geom[: self.data.ncon])
        return bool(
            (np.isin(pairs, self._object_geoms).any(axis=1) & np.isin(pairs, self._goal_geoms).any(axis=1)).any()
        )

    @property
    def success(self) -> bool:
        """LIBERO's own verdict on the present state."""
        return bool(self.robosuite._check_success())
